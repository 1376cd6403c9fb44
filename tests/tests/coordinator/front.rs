//! `xomni.v1.Images` as a client sees it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tonic::{Code, Request, Status, Streaming, service::Routes, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use xomni_cluster::Membership;
use xomni_coordinator::{
    admission::Bounds,
    metrics::Metrics,
    server::{Setup, serve},
};
use xomni_engine::{Result, text::Grid};
use xomni_proto::images::{
    GenerateImagesRequest, ImageEvent, image_event::Event, images_client::ImagesClient,
};
use xomni_tests::loopback::{Loopback, identity};
use xomni_worker::{
    api::{Backbone, Encoder, GenerateJob, JobStream, TokenFrame},
    process::Listener,
    serve::{backbone_service, decoder_service},
};

use crate::model::{Tiny, record};

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(60);
/// More than a test has time for.
const LONG: &str = "256x256";

/// A coordinator and its workers.
struct Cluster {
    model: Tiny,
    workers: Vec<Worker>,
    membership: watch::Sender<Arc<Membership>>,
    metrics: Metrics,
    address: SocketAddr,
    client: ImagesClient<Channel>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<()>>,
}

/// A process with both services.
struct Worker {
    server: Loopback,
    jobs: Arc<AtomicUsize>,
    _standing: watch::Sender<xomni_worker::convert::Standing>,
}

/// Counts the jobs of a backbone.
struct Counted {
    model: Tiny,
    jobs: Arc<AtomicUsize>,
}

impl Backbone for Counted {
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>> {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        self.model.generate(job).await
    }
}

/// These tests read no pictures.
struct NoEncoder;

impl Encoder for NoEncoder {
    async fn encode(&self, _: Vec<u8>) -> Result<(Grid, Vec<u32>)> {
        unreachable!("nobody asks")
    }
}

fn worker(model: &Tiny) -> Worker {
    let config = &model.0.config.backbone;
    let (standing, identity) = identity((config.text_vocab + config.mm_vocab) as u32);
    let jobs = Arc::new(AtomicUsize::new(0));
    let counted = Counted {
        model: model.clone(),
        jobs: jobs.clone(),
    };
    let backbone = backbone_service(Arc::new(counted), identity.clone());
    let decoder = decoder_service(Arc::new(model.clone()), Arc::new(NoEncoder), identity);
    Worker {
        server: Loopback::start(Routes::new(backbone).add_service(decoder)),
        jobs,
        _standing: standing,
    }
}

impl Cluster {
    async fn start(workers: usize, bounds: Bounds) -> Self {
        let model = Tiny::open();
        let workers: Vec<_> = (0..workers).map(|_| worker(&model)).collect();
        let metrics = Metrics::default();
        let setup = Setup {
            model: "tiny".into(),
            tokenizer: model.0.tokenizer.clone(),
            limits: model.limits(),
            steps: model.0.config.decoder.num_inference_steps,
            bounds,
            attempts: 8,
            timeout: Duration::from_secs(600),
            drain: SOON,
            metrics: metrics.clone(),
        };
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind(anywhere).await.expect("a free port");
        let address = listener.address();
        let (membership, watched) = watch::channel(Arc::new(Membership::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let served = tokio::spawn(serve(setup, listener, watched, shutdown));
        let channel = Channel::from_shared(format!("http://{address}")).expect("address");
        let cluster = Self {
            model,
            workers,
            membership,
            metrics,
            address,
            client: ImagesClient::new(channel.connect_lazy()),
            stop: Some(stop),
            served,
        };
        cluster.announce();
        cluster.serving(true).await;
        cluster
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
    async fn serving(&self, expected: bool) {
        let channel = Channel::from_shared(format!("http://{}", self.address)).expect("address");
        let mut health = HealthClient::new(channel.connect_lazy());
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

    async fn begin(&self, size: &str) -> Result<Streaming<ImageEvent>, Status> {
        let answer = self.client.clone().generate(request(size)).await;
        answer.map(tonic::Response::into_inner)
    }

    /// Begins a request and waits until it runs.
    async fn begun(&self, size: &str) -> Streaming<ImageEvent> {
        let mut stream = self.begin(size).await.expect("accepted");
        let first = stream
            .message()
            .await
            .expect("runs")
            .and_then(|event| event.event);
        assert!(matches!(first, Some(Event::Accepted(_))), "{first:?}");
        stream
    }

    /// Waits until the coordinator and the model have nothing left.
    async fn idle(&self) {
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

const ROOMY: Bounds = Bounds {
    in_flight: 64,
    queue: 64,
};

fn request(size: &str) -> GenerateImagesRequest {
    GenerateImagesRequest {
        prompt: "a red fox".into(),
        size: Some(size.into()),
        seed: Some(7),
        num_inference_steps: Some(3),
        n: Some(2),
        ..Default::default()
    }
}

/// The pictures of a stream to its end.
async fn pictures(mut stream: Streaming<ImageEvent>) -> Result<Vec<Vec<u8>>, Status> {
    let mut pictures = vec![vec![]; 2];
    let mut last = [0; 2];
    while let Some(event) = timeout(SOON, stream.message()).await.expect("in time")? {
        match event.event.expect("an event") {
            Event::Picture(chunk) => {
                let index = chunk.index as usize;
                pictures[index].extend_from_slice(&chunk.data);
                last[index] += u32::from(chunk.last);
            }
            Event::Drawing(drawing) => assert!(drawing.done <= drawing.total),
            Event::Decoding(_) | Event::Accepted(_) => {}
        }
    }
    assert_eq!(last, [1, 1]);
    Ok(pictures)
}

async fn expected(model: &Tiny, size: &str) -> Vec<Vec<u8>> {
    let job = model.job("a red fox", size, 2);
    let images = model.draw(job).await;
    images.into_iter().map(|image| image.png).collect()
}

#[tokio::test]
async fn pictures_are_those_of_one_process() {
    let cluster = Cluster::start(1, ROOMY).await;
    let stream = cluster.begun("96x64").await;
    let drawn = pictures(stream).await.expect("drawn");
    assert_eq!(drawn, expected(&cluster.model, "96x64").await);
    cluster.idle().await;
    assert_eq!(cluster.metrics.requests(Code::Ok).get(), 1);
    assert_eq!(cluster.metrics.images.get(), 2);
}

#[tokio::test]
async fn bad_input_is_refused_by_name() {
    let cluster = Cluster::start(1, ROOMY).await;
    let status = cluster.begin("60x64").await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("size: "), "{status:?}");
    let counted = cluster.metrics.requests(Code::InvalidArgument);
    assert_eq!(counted.get(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_frees_everything() {
    let cluster = Cluster::start(1, ROOMY).await;
    let mut stream = cluster.begun(LONG).await;
    stream.message().await.expect("draws");
    drop(stream);
    cluster.idle().await;
    assert_eq!(cluster.metrics.requests(Code::Cancelled).get(), 1);
}

#[tokio::test]
async fn a_deadline_ends_a_request() {
    let cluster = Cluster::start(1, ROOMY).await;
    let mut request = Request::new(request(LONG));
    request.set_timeout(Duration::from_millis(200));
    let answer = cluster.client.clone().generate(request).await;
    let ended = match answer {
        Ok(answer) => pictures(answer.into_inner()).await.map(drop),
        Err(status) => Err(status),
    };
    assert!(ended.is_err());
    cluster.idle().await;
}

#[tokio::test]
async fn overload_is_refused_with_the_time_to_come_back() {
    let bounds = Bounds {
        in_flight: 1,
        queue: 1,
    };
    let cluster = Cluster::start(1, bounds).await;
    let running = cluster.begun("96x64").await;
    let waiting = cluster.begin("96x64").await.expect("waits");
    let status = cluster.begin("96x64").await.expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let retry = status.metadata().get("retry-after-ms").expect("a time");
    let millis: u64 = retry.to_str().expect("text").parse().expect("a number");
    assert!(millis > 0);
    let expected = expected(&cluster.model, "96x64").await;
    for stream in [running, waiting] {
        assert_eq!(pictures(stream).await.expect("undisturbed"), expected);
    }
    cluster.idle().await;
}

#[tokio::test]
async fn two_groups_share_load() {
    let cluster = Cluster::start(2, ROOMY).await;
    let mut streams = vec![];
    for _ in 0..4 {
        streams.push(cluster.begun("64x64").await);
    }
    let jobs = cluster
        .workers
        .iter()
        .map(|worker| worker.jobs.load(Ordering::Relaxed));
    let jobs: Vec<_> = jobs.collect();
    for stream in streams {
        pictures(stream).await.expect("drawn");
    }
    let after = cluster
        .workers
        .iter()
        .map(|worker| worker.jobs.load(Ordering::Relaxed));
    assert_eq!(after.collect::<Vec<_>>(), [2, 2], "at first {jobs:?}");
}

#[tokio::test]
async fn images_outlive_the_group_that_draws_them() {
    let mut cluster = Cluster::start(2, ROOMY).await;
    let expected = expected(&cluster.model, "128x128").await;
    let mut stream = cluster.begun("128x128").await;
    stream.message().await.expect("draws");
    let drawing = cluster
        .workers
        .iter()
        .position(|w| w.jobs.load(Ordering::Relaxed) > 0);
    drop(cluster.workers.remove(drawing.expect("a group draws")));
    assert_eq!(pictures(stream).await.expect("drawn"), expected);
    assert_eq!(cluster.workers[0].jobs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn without_workers_it_is_not_healthy_and_says_so() {
    let cluster = Cluster::start(1, ROOMY).await;
    cluster.membership.send_replace(Arc::default());
    cluster.serving(false).await;
    let status = cluster.begin("64x64").await.expect_err("refused");
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let mut cluster = Cluster::start(1, ROOMY).await;
    let expected = expected(&cluster.model, "128x128").await;
    let stream = cluster.begun("128x128").await;
    drop(cluster.stop.take());
    cluster.serving(false).await;
    let status = cluster.begin("64x64").await.expect_err("refused");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(pictures(stream).await.expect("finished"), expected);
    let served = timeout(SOON, cluster.served).await.expect("ends in time");
    served.expect("no panic").expect("no error");
}

#[tokio::test]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let cluster = Cluster::start(1, ROOMY).await;
    let channel = Channel::from_shared(format!("http://{}", cluster.address)).expect("address");
    let mut client = ServerReflectionClient::new(channel.connect_lazy());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await;
    let answer = answers.expect("answers").into_inner().message().await;
    let services = match answer
        .expect("an answer")
        .and_then(|answer| answer.message_response)
    {
        Some(MessageResponse::ListServicesResponse(list)) => list.service,
        other => panic!("{other:?}"),
    };
    assert!(
        services
            .iter()
            .any(|service| service.name == "xomni.v1.Images"),
        "{services:?}"
    );
}
