//! A coordinator in this process, and its workers beside it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tonic::{service::Routes, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use xomni_cluster::Membership;
use xomni_coordinator::{
    admission::Bounds,
    front::access::Access,
    metrics::Metrics,
    server::{Setup, serve},
    uploads::Room,
};
use xomni_engine::Result;
use xomni_worker::{
    api::{Backbone, GenerateJob, JobStream, TokenFrame},
    client::Dialer,
    process::Listener,
    serve::{backbone_service, decoder_service},
};

use crate::{
    loopback::{Loopback, identity},
    tiny::{Tiny, record},
};

/// How long a test waits for what must come.
pub const SOON: Duration = Duration::from_secs(60);
/// Bounds that no test reaches.
pub const ROOMY: Bounds = Bounds {
    in_flight: 64,
    queue: 64,
};

/// A coordinator and its workers.
#[derive(Debug)]
pub struct Cluster {
    /// What every worker serves.
    pub model: Tiny,
    /// The workers that the coordinator knows.
    pub workers: Vec<Worker>,
    /// Tells the coordinator of workers.
    pub membership: watch::Sender<Arc<Membership>>,
    /// What the coordinator counts.
    pub metrics: Metrics,
    /// Where the coordinator is called.
    pub address: SocketAddr,
    /// Ends the coordinator when it is dropped.
    pub stop: Option<oneshot::Sender<()>>,
    /// The coordinator.
    pub served: JoinHandle<Result<()>>,
}

/// A process with both services.
#[derive(Debug)]
pub struct Worker {
    server: Loopback,
    /// Jobs that its backbone was given.
    pub jobs: Arc<AtomicUsize>,
    /// Tokens of each output that its backbone sends, of jobs that begin while that is not
    /// `usize::MAX`; more once it is raised.
    pub most: watch::Sender<usize>,
    /// Time that its backbone takes for each token of an output, at least, in jobs that begin.
    pub pace: watch::Sender<Duration>,
    _standing: watch::Sender<xomni_worker::convert::Standing>,
}

/// Counts the jobs of a backbone and holds its tokens back.
struct Counted {
    model: Tiny,
    jobs: Arc<AtomicUsize>,
    most: watch::Receiver<usize>,
    pace: watch::Receiver<Duration>,
}

impl Backbone for Counted {
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>> {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        let stream = self.model.generate(job).await?;
        let pace = *self.pace.borrow();
        if *self.most.borrow() == usize::MAX && pace.is_zero() {
            return Ok(stream);
        }
        let (frames, held) = mpsc::channel(1);
        let most = self.most.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = frames.closed() => {}
                () = hold_back(stream, &frames, most, pace) => {}
            }
        });
        Ok(JobStream::new(held))
    }
}

/// Sends the tokens of a stream one by one, each once there may be so many and it is time.
async fn hold_back(
    mut stream: JobStream<TokenFrame>,
    frames: &mpsc::Sender<Result<TokenFrame>>,
    mut most: watch::Receiver<usize>,
    pace: Duration,
) {
    let start = Instant::now();
    while let Some(frame) = stream.next().await.transpose() {
        let singles = match frame {
            Ok(frame) => singles(frame).into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        for single in singles {
            let first = single.as_ref().map_or(0, |frame| frame.first as usize);
            // Whoever is gone holds nothing back and reads nothing.
            let _ = most.wait_for(|most| *most > first).await;
            sleep_until(start + pace * (first as u32 + 1)).await;
            let _ = frames.send(single).await;
        }
    }
}

/// A frame as frames of a token each.
fn singles(frame: TokenFrame) -> Vec<TokenFrame> {
    let last = frame.tokens.len().saturating_sub(1);
    if frame.tokens.len() < 2 {
        return vec![frame];
    }
    let single = |(index, token): (usize, &u32)| TokenFrame {
        output: frame.output,
        first: frame.first + index as u32,
        tokens: vec![*token],
        log_probs: vec![],
        finished: frame.finished.filter(|_| index == last),
    };
    frame.tokens.iter().enumerate().map(single).collect()
}

fn worker(model: &Tiny) -> Worker {
    let config = &model.0.config.backbone;
    let (standing, identity) = identity((config.text_vocab + config.mm_vocab) as u32);
    let jobs = Arc::new(AtomicUsize::new(0));
    let (most, held) = watch::channel(usize::MAX);
    let (pace, paced) = watch::channel(Duration::ZERO);
    let counted = Counted {
        model: model.clone(),
        jobs: jobs.clone(),
        most: held,
        pace: paced,
    };
    let backbone = backbone_service(Arc::new(counted), identity.clone());
    let decoder = decoder_service(Arc::new(model.clone()), Arc::new(model.clone()), identity);
    Worker {
        server: Loopback::start(Routes::new(backbone).add_service(decoder)),
        jobs,
        most,
        pace,
        _standing: standing,
    }
}

impl Cluster {
    /// A coordinator with these bounds and so many workers, which it knows.
    ///
    /// # Panics
    /// If it does not serve in time.
    pub async fn start(workers: usize, bounds: Bounds) -> Self {
        Self::start_with(workers, |setup| setup.bounds = bounds).await
    }

    /// A coordinator set up as `change` has it.
    ///
    /// # Panics
    /// As [`Cluster::start`].
    pub async fn start_with(workers: usize, change: impl FnOnce(&mut Setup)) -> Self {
        let model = Tiny::open();
        let workers: Vec<_> = (0..workers).map(|_| worker(&model)).collect();
        let mut registry = xomni_worker::process::Metrics::registry();
        let metrics = Metrics::register(&mut registry);
        let mut setup = Setup {
            model: "tiny".into(),
            chat: model.chat(),
            limits: model.limits(),
            steps: model.0.config.decoder.num_inference_steps,
            bounds: ROOMY,
            attempts: 8,
            timeout: Duration::from_secs(600),
            drain: SOON,
            http: Default::default(),
            access: Access::open(),
            dialer: Dialer::default(),
            stall_timeout: SOON,
            upload_room: Room {
                bytes: 64 << 20,
                files: 16,
            },
            upload_lifetime: Duration::from_secs(3600),
            metrics: metrics.clone(),
            registry: Arc::new(registry),
        };
        change(&mut setup);
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind(anywhere).await.expect("a free port");
        let address = listener.address();
        let (membership, watched) = watch::channel(Arc::new(Membership::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let served = tokio::spawn(serve(setup, listener, watched, shutdown));
        let cluster = Self {
            model,
            workers,
            membership,
            metrics,
            address,
            stop: Some(stop),
            served,
        };
        cluster.announce();
        cluster.serving(true).await;
        cluster
    }

    /// A channel to the coordinator.
    ///
    /// # Panics
    /// If its address is none.
    pub fn channel(&self) -> Channel {
        let channel = Channel::from_shared(format!("http://{}", self.address));
        channel.expect("an address").connect_lazy()
    }

    /// Jobs that the backbones were given.
    pub fn jobs(&self) -> usize {
        let jobs = |worker: &Worker| worker.jobs.load(Ordering::Relaxed);
        self.workers.iter().map(jobs).sum()
    }

    /// Tells the coordinator of all workers.
    fn announce(&self) {
        let records = self.workers.iter().enumerate().flat_map(|(index, worker)| {
            let address = worker.server.address.to_string();
            let id = |role: &str| format!("{role}{index}");
            [
                record(&id("backbone"), &address, Some(1)),
                record(&id("decoder"), &address, None),
            ]
        });
        self.membership.send_replace(Arc::new(records.collect()));
    }

    /// Waits until the health is so.
    ///
    /// # Panics
    /// If it is not in time.
    pub async fn serving(&self, expected: bool) {
        let mut health = HealthClient::new(self.channel());
        let request = HealthCheckRequest {
            service: "xomni.v1.Images".into(),
        };
        let mut states = health.watch(request).await.expect("health").into_inner();
        let serving = tonic_health::pb::health_check_response::ServingStatus::Serving;
        let watch = async {
            while let Some(state) = states.message().await.expect("health") {
                if (state.status() == serving) == expected {
                    return;
                }
            }
        };
        timeout(SOON, watch).await.expect("health in time");
    }

    /// Waits until the coordinator and the model have nothing left.
    ///
    /// # Panics
    /// If they have something for too long.
    pub async fn idle(&self) {
        let idle = async {
            loop {
                let load = self.model.0.backbone.handle().load();
                let jobs = (self.metrics.in_flight.get(), load.running, load.queued);
                if jobs == (0, 0, 0) && load.kv_blocks_free == load.kv_blocks {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, idle).await.expect("freed in time");
    }
}
