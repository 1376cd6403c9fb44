//! A process that serves some ranks of a backbone group.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use clap::Args;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_health::{ServingStatus, server::HealthReporter};
use xomni_cluster::{
    Cluster,
    record::{Load, Role, WorkerRecord, WorkerState},
};
use xomni_engine::{
    Error, Result,
    checkpoint::{Weights, XOmniConfig},
    decode::WeightsSource,
    group::{GroupConfig, ThreadGroup},
    ops::cpu::Cpu,
    schedule::SchedulerConfig,
    text::Tokenizer,
};
use xomni_proto::{PROTOCOL_VERSION, worker::ranks_server::RanksServer};

use super::arguments::{Common, worker_id};
use crate::{
    backbone::BackboneHandle,
    convert::{Identity, Standing},
    group::{
        EpochStore, Follower, GroupBackbone, Leader, LoneStore, Part, fingerprint::fingerprint,
        leader::Arrival, ranks_service, sizes,
    },
    process::{Signals, die_with_parent},
    serve::backbone_service,
    telemetry::Telemetry,
};

/// The service whose health is told.
const SERVICE: &str = "xomni.worker.v1.Backbone";
/// How often a changed load is told.
const LOAD_INTERVAL: Duration = Duration::from_secs(1);
/// How long calls may take to notice that the process ends.
const CLOSING: Duration = Duration::from_secs(1);

/// Arguments of `xomni-worker backbone`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The group
    #[arg(long, value_name = "NAME", default_value = "0")]
    group: String,
    /// First rank of this process
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    first_rank: u32,
    /// Ranks of this process; all of the group by default
    #[arg(long, value_name = "RANKS")]
    ranks: Option<u32>,
    /// Tensor-parallel degree: ranks of the group, 1, 2, 4 or 8
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    tp: u32,
    /// Memory for keys and values of this process, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    kv_memory: usize,
    /// Jobs that may wait
    #[arg(long, value_name = "JOBS", default_value_t = 256)]
    max_queue: usize,
}

impl Arguments {
    /// Ranks of this process.
    fn own_ranks(&self) -> u32 {
        self.ranks
            .unwrap_or(self.tp.saturating_sub(self.first_rank))
    }

    /// # Errors
    /// [`Error::Unsupported`] for processes that could never find each other.
    fn check(&self) -> Result<()> {
        if self.common.etcd.is_empty() && self.own_ranks() != self.tp {
            return Err(Error::Unsupported {
                what: format!("{} of {} ranks without --etcd", self.own_ranks(), self.tp),
                reason: "the processes of a group find each other there".into(),
            });
        }
        Ok(())
    }
}

/// Serves until a signal ends it.
///
/// # Errors
/// What kept it from loading or from serving.
pub async fn run(arguments: Arguments) -> Result<()> {
    let _telemetry = Telemetry::start("xomni-backbone");
    arguments.check()?;
    let common = &arguments.common;
    if common.die_with_parent {
        die_with_parent()?;
    }
    let mut signals = Signals::catch()?;
    let stop = async move {
        let signal = signals.next().await;
        tracing::info!(signal, "ends");
    };
    let model = common.served_name()?;
    let cluster = common.cluster()?;
    let listener = TcpListener::bind(common.listen).await;
    let listener = listener.map_err(|error| system(&common.listen.to_string(), &error))?;
    let bound = listener
        .local_addr()
        .map_err(|error| system(&common.listen.to_string(), &error))?;
    let (host, address) = (common.host(bound)?, common.advertised(bound)?);

    let standing = watch::Sender::new(Standing {
        epoch: 0,
        state: WorkerState::Forming,
        load: Load::default(),
    });
    let arguments = Arc::new(arguments);
    let loading = {
        let (arguments, standing) = (arguments.clone(), standing.clone());
        tokio::task::spawn_blocking(move || load(&arguments, bound, host, standing))
    };
    // Signals end the process while it loads: there is nothing to finish yet.
    let mut stop = Box::pin(stop);
    let (part, scheduler) = tokio::select! {
        loaded = loading => loaded.map_err(|_| Error::GroupLost("loading panicked".into()))??,
        () = &mut stop => return Ok(()),
    };

    let process = Process {
        id: worker_id("backbone"),
        model,
        address: address.clone(),
        part: Arc::new(part),
        scheduler,
        arguments,
    };
    let (serving, served) = watch::channel(None);
    let (ranks, arrivals) = ranks_service();
    let (health, health_service) = tonic_health::server::health_reporter();
    let backbone = backbone_service(Arc::new(GroupBackbone::new(served)), process.identity());
    let server = Server::builder()
        .tcp_nodelay(true)
        .add_service(health_service)
        .add_service(backbone)
        .add_service(RanksServer::new(ranks));
    let (close, closed) = oneshot::channel::<()>();
    let server = tokio::spawn(
        server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
            drop(closed.await)
        }),
    );
    println!("listening on {address}");

    let (told, telling) = oneshot::channel::<()>();
    let teller = tokio::spawn(process.tell(cluster.clone(), standing.subscribe(), health, telling));
    let result = match cluster {
        Some(cluster) => process.take_part(cluster, serving, arrivals, stop).await,
        None => {
            let store = LoneStore::default();
            process.take_part(store, serving, arrivals, stop).await
        }
    };
    drop(told);
    // The record goes with its lease if etcd does not answer.
    let _ = timeout(CLOSING, teller).await;
    drop(close);
    let _ = timeout(CLOSING, server).await;
    result
}

fn system(what: &str, error: &dyn std::error::Error) -> Error {
    Error::Unsupported {
        what: what.to_owned(),
        reason: error.to_string(),
    }
}

/// Loads and warms the ranks of this process.
fn load(
    arguments: &Arguments,
    bound: SocketAddr,
    host: String,
    standing: watch::Sender<Standing>,
) -> Result<(Part, SchedulerConfig)> {
    let common = &arguments.common;
    let model: &Path = &common.model;
    let source = common.source()?;
    let config = XOmniConfig::open(model)?;
    let tokenizer = Tokenizer::open(model, &config)?;
    let ops = Arc::new(Cpu::new());
    let size = arguments.tp as usize;
    let first = arguments.first_rank as usize;
    let own = first..first + arguments.own_ranks() as usize;
    let (kv_bytes, queue) = (arguments.kv_memory << 20, arguments.max_queue);
    let backbone = &config.backbone;
    let scheduler = sizes::scheduler_config(backbone, own.clone(), size, kv_bytes, queue)?;
    let weights = match source {
        WeightsSource::Checkpoint => Weights::open_safetensors(model, "model")?,
        WeightsSource::Random(seed) => Weights::random(seed, "backbone"),
    };
    let group = GroupConfig {
        ranks: size,
        max_rows: scheduler.max_rows,
        blocks: scheduler.blocks,
        block_size: scheduler.block_size,
        suppressed: vec![tokenizer.som(), tokenizer.eom(), tokenizer.image_marker()],
        keep_logits: false,
    };
    let ranks = ThreadGroup::start_part(&ops, backbone, weights, &group, own)?;
    ranks.warm_up()?;
    let part = Part {
        group: arguments.group.clone(),
        size: arguments.tp,
        ranks: Arc::new(ranks),
        fingerprint: fingerprint(model, source, &format!("cpu-{}", ops.isa()))?,
        limits: sizes::plan_limits(backbone, &scheduler),
        listen: bound.ip(),
        host,
        standing,
    };
    Ok((part, scheduler))
}

/// A process whose ranks are warm.
struct Process {
    id: String,
    model: String,
    address: String,
    part: Arc<Part>,
    scheduler: SchedulerConfig,
    arguments: Arc<Arguments>,
}

impl Process {
    fn identity(&self) -> Identity {
        Identity {
            model: self.model.clone(),
            fingerprint: self.part.fingerprint.clone(),
            weights_version: self.part.fingerprint.clone(),
            vocabulary: u32::try_from(self.part.limits.vocabulary).unwrap_or(u32::MAX),
            standing: self.part.standing.subscribe(),
        }
    }

    /// Leads or follows, until `stop` is ready and the work is done.
    async fn take_part(
        &self,
        store: impl EpochStore,
        serving: watch::Sender<Option<BackboneHandle>>,
        arrivals: mpsc::Receiver<Arrival>,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        let drain = Duration::from_secs(self.arguments.common.drain);
        let part = self.part.clone();
        if self.arguments.first_rank == 0 {
            let leader = Leader {
                part,
                id: self.id.clone(),
                address: self.address.clone(),
                store,
                scheduler: self.scheduler,
                serving,
                drain,
                arrivals,
            };
            return leader.run(stop).await;
        }
        // Dropped, so that whoever takes this process for a leader is refused at once.
        drop((serving, arrivals));
        Follower { part, store, drain }.run(stop).await;
        Ok(())
    }

    /// The record of this process, standing so.
    fn record(&self, standing: &Standing) -> WorkerRecord {
        let ranks = self.part.ranks.ranks();
        WorkerRecord {
            id: self.id.clone(),
            address: self.address.clone(),
            protocol_version: PROTOCOL_VERSION,
            model: self.model.clone(),
            fingerprint: self.part.fingerprint.clone(),
            state: standing.state,
            role: Role::Backbone {
                group: self.part.group.clone(),
                first_rank: ranks.start as u32,
                ranks: ranks.len() as u32,
                group_size: self.part.size,
                epoch: standing.epoch,
            },
            load: standing.load,
        }
    }

    /// Tells etcd and whoever asks for its health how the process stands: a change of epoch or
    /// state at once, a change of load soon. Withdraws when `ended` is dropped.
    fn tell(
        &self,
        cluster: Option<Cluster>,
        mut standing: watch::Receiver<Standing>,
        health: HealthReporter,
        mut ended: oneshot::Receiver<()>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let mut told = *standing.borrow_and_update();
        let template = self.record(&told);
        async move {
            let registration = cluster.map(|cluster| cluster.register(template.clone()));
            loop {
                let healthy = match told.state {
                    WorkerState::Ready => ServingStatus::Serving,
                    WorkerState::Forming | WorkerState::Draining => ServingStatus::NotServing,
                };
                health.set_service_status(SERVICE, healthy).await;
                if let Some(registration) = &registration {
                    registration.update(stands(&template, &told));
                }
                let changed = |standing: &Standing| {
                    (standing.epoch, standing.state) != (told.epoch, told.state)
                };
                tokio::select! {
                    Ok(_) = standing.wait_for(changed) => {}
                    () = sleep(LOAD_INTERVAL) => {}
                    _ = &mut ended => break,
                }
                told = *standing.borrow_and_update();
            }
            if let Some(registration) = registration {
                registration.withdraw().await;
            }
        }
    }
}

/// The record of a process that stands otherwise now.
fn stands(record: &WorkerRecord, standing: &Standing) -> WorkerRecord {
    let mut record = record.clone();
    record.state = standing.state;
    record.load = standing.load;
    if let Role::Backbone { epoch, .. } = &mut record.role {
        *epoch = standing.epoch;
    }
    record
}
