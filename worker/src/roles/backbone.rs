//! A process that serves some ranks of a backbone group.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use clap::Args;
use tokio::sync::{mpsc, watch};
use tonic::service::Routes;
use xomni_cluster::record::{Load, Role, WorkerRecord, WorkerState};
use xomni_engine::{
    Error, Result,
    checkpoint::{Weights, XOmniConfig},
    decode::WeightsSource,
    group::GroupConfig,
    schedule::SchedulerConfig,
    text::Tokenizer,
};
use xomni_proto::{
    PROTOCOL_VERSION,
    worker::{backbone_server::SERVICE_NAME, ranks_server::RanksServer},
};

use super::{
    arguments::{Common, worker_id},
    device::{DeviceKind, Devices, placement},
};
use crate::{
    backbone::{BackboneHandle, BackboneMeter},
    client::Dialer,
    convert::{Identity, Standing},
    fingerprint,
    group::{
        EpochStore, Follower, GroupBackbone, GroupMeter, Leader, LoneStore, Part, leader::Arrival,
        ranks_service, sizes,
    },
    process::{Listener, Metrics, Presence, Signals, announce, die_with_parent, on_thread},
    serve::backbone_service,
    telemetry::Telemetry,
};

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
    /// Tensor-parallel degree: ranks of the group, 1, 2, 4 or 8; by default as many as --devices names
    #[arg(long, value_name = "RANKS")]
    tp: Option<u32>,
    /// What the ranks of this process run on: `cpu`, `cuda` (the first GPU) or `cuda:NUMBER`
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceKind::Cpu)]
    device: DeviceKind,
    /// GPUs of the ranks of this process, one each, in order of rank
    #[arg(
        long,
        value_name = "NUMBER,…",
        value_delimiter = ',',
        conflicts_with = "device"
    )]
    devices: Vec<usize>,
    /// Memory for keys and values of this process, in MiB; by default 2048 on a CPU, and on a GPU
    /// what the weights leave of nine tenths of it
    #[arg(long, value_name = "MIB")]
    kv_memory: Option<usize>,
    /// Jobs that may wait
    #[arg(long, value_name = "JOBS", default_value_t = 256)]
    max_queue: usize,
}

impl Arguments {
    /// Ranks of the group.
    fn tp(&self) -> u32 {
        let devices = u32::try_from(self.devices.len()).unwrap_or(u32::MAX);
        self.tp.unwrap_or(devices.max(1))
    }

    /// Ranks of this process.
    fn own_ranks(&self) -> u32 {
        self.ranks
            .unwrap_or(self.tp().saturating_sub(self.first_rank))
    }

    /// # Errors
    /// [`Error::Unsupported`] for processes that could never find each other.
    fn check(&self) -> Result<()> {
        let (own, tp) = (self.own_ranks(), self.tp());
        if self.common.etcd.is_empty() && own != tp {
            return Err(Error::Unsupported {
                what: format!("{own} of {tp} ranks without --etcd"),
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
    let dialer = common.tls.client.dialer()?;
    let listener = common.tls.listen("--listen", common.listen).await?;
    let bound = listener.address();
    let (host, address) = (common.host(bound)?, common.advertised(bound)?);
    let arguments = Arc::new(arguments);
    let load = {
        let arguments = arguments.clone();
        on_thread("load", move || load(&arguments, bound, host))
    };
    // Signals end the process while it loads: there is nothing to finish yet.
    let mut stop = Box::pin(stop);
    let (part, scheduler) = tokio::select! {
        loaded = load => loaded?,
        () = &mut stop => return Ok(()),
    };
    let process = Process {
        dialer,
        id: worker_id("backbone"),
        model,
        address,
        part: Arc::new(part),
        scheduler,
        arguments,
    };
    process.serve(listener, stop).await
}

/// Loads and warms the ranks of this process.
fn load(arguments: &Arguments, bound: SocketAddr, host: String) -> Result<(Part, SchedulerConfig)> {
    let common = &arguments.common;
    let model: &Path = &common.model;
    let source = common.source()?;
    let config = XOmniConfig::open(model)?;
    let tokenizer = Tokenizer::open(model, &config)?;
    let size = arguments.tp() as usize;
    let first = arguments.first_rank as usize;
    let own = first..first + arguments.own_ranks() as usize;
    let places = placement(arguments.device, &arguments.devices, own.len())?;
    let devices = Devices::open(&places)?;
    let backbone = &config.backbone;
    let kv_bytes = match arguments.kv_memory {
        Some(mebibytes) => mebibytes << 20,
        None => devices.kv_bytes(sizes::weight_bytes(backbone, size))?,
    };
    let kv_values = kv_bytes / devices.kv_value_bytes();
    let queue = arguments.max_queue;
    let scheduler = sizes::scheduler_config(backbone, own.clone(), size, kv_values, queue)?;
    let weights = match source {
        WeightsSource::Checkpoint => Weights::open_safetensors(model, "model")?,
        WeightsSource::Random(seed) => Weights::random(seed, "backbone"),
    };
    let group = GroupConfig {
        ranks: size,
        max_rows: scheduler.max_rows,
        blocks: scheduler.blocks,
        block_size: scheduler.block_size,
        slots: scheduler.max_sequences,
        suppressed: vec![tokenizer.som(), tokenizer.eom(), tokenizer.image_marker()],
        keep_logits: false,
    };
    let ranks = devices.start(backbone, weights, &group, own)?;
    ranks.warm_up()?;
    let part = Part {
        group: arguments.group.clone(),
        size: arguments.tp(),
        ranks: Arc::new(ranks),
        fingerprint: fingerprint::tokens(model, source, &devices.numerics())?,
        limits: sizes::plan_limits(backbone, &scheduler),
        listen: bound.ip(),
        host,
        meter: GroupMeter::default(),
        standing: watch::Sender::new(Standing {
            epoch: 0,
            state: WorkerState::Forming,
            load: Load::default(),
        }),
    };
    Ok((part, scheduler))
}

/// A process whose ranks are warm.
struct Process {
    /// How it calls the leader.
    dialer: Dialer,
    id: String,
    model: String,
    address: String,
    part: Arc<Part>,
    scheduler: SchedulerConfig,
    arguments: Arc<Arguments>,
}

impl Process {
    /// Serves until `stop` is ready and the work is done.
    async fn serve(&self, listener: Listener, stop: impl Future<Output = ()> + Send) -> Result<()> {
        let common = &self.arguments.common;
        let cluster = common.cluster()?;
        let meter = BackboneMeter::default();
        let metrics = self.serve_metrics(&meter).await?;
        let (record, standing) = (self.record(), self.part.standing.clone());
        let (presence, health) = Presence::new(record, standing, cluster.as_ref(), SERVICE_NAME);
        let (serving, served) = watch::channel(None);
        let (ranks, arrivals) = ranks_service();
        let backbone = backbone_service(Arc::new(GroupBackbone::new(served)), self.identity());
        let routes = Routes::new(health)
            .add_service(backbone)
            .add_service(RanksServer::new(ranks));
        announce(
            "backbone",
            &self.address,
            metrics.as_ref().map(Metrics::url),
        );
        let place = Place {
            serving,
            arrivals,
            meter,
        };
        let mut result = Ok(());
        let life = async {
            result = match cluster {
                Some(cluster) => self.take_part(cluster, place, stop).await,
                None => self.take_part(LoneStore::default(), place, stop).await,
            };
        };
        let ended = tokio::select! {
            ended = listener.serve(routes, life, CLOSING) => ended,
            never = presence.keep() => match never {},
        };
        presence.withdraw().await;
        result.and(ended.map(|_| ()))
    }

    async fn serve_metrics(&self, meter: &BackboneMeter) -> Result<Option<Metrics>> {
        let common = &self.arguments.common;
        let Some(address) = common.metrics else {
            return Ok(None);
        };
        let listener = common.tls.listen("--metrics", address).await?;
        let mut registry = Metrics::registry();
        let (standing, leads) = (self.part.standing.subscribe(), self.leads());
        self.part.meter.register(&mut registry, standing, leads);
        if leads {
            meter.register(&mut registry);
        }
        Ok(Some(Metrics::serve(listener, Arc::new(registry))))
    }

    fn leads(&self) -> bool {
        self.arguments.first_rank == 0
    }

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
        place: Place,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        let (drain, part) = (self.arguments.common.drain(), self.part.clone());
        if self.leads() {
            let leader = Leader {
                part,
                id: self.id.clone(),
                address: self.address.clone(),
                store,
                scheduler: self.scheduler,
                serving: place.serving,
                drain,
                meter: place.meter,
                arrivals: place.arrivals,
            };
            return leader.run(stop).await;
        }
        // Dropped, so that whoever takes this process for a leader is refused at once.
        drop(place);
        let follower = Follower {
            part,
            store,
            dialer: self.dialer.clone(),
            drain,
        };
        follower.run(stop).await;
        Ok(())
    }

    /// The record of this process before it joins an epoch.
    fn record(&self) -> WorkerRecord {
        let ranks = self.part.ranks.ranks();
        WorkerRecord {
            id: self.id.clone(),
            address: self.address.clone(),
            protocol_version: PROTOCOL_VERSION,
            model: self.model.clone(),
            fingerprint: self.part.fingerprint.clone(),
            state: WorkerState::Forming,
            role: Role::Backbone {
                group: self.part.group.clone(),
                first_rank: ranks.start as u32,
                ranks: ranks.len() as u32,
                group_size: self.part.size,
                epoch: 0,
            },
            load: Load::default(),
        }
    }
}

/// What a leader needs of its process.
struct Place {
    /// What is served now.
    serving: watch::Sender<Option<BackboneHandle>>,
    /// Connections of followers.
    arrivals: mpsc::Receiver<Arrival>,
    /// Counts the jobs.
    meter: BackboneMeter,
}
