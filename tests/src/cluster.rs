//! A whole cluster of real processes: etcd, a coordinator, the ranks of groups, and decoders.

use std::{future::Future, path::Path, time::Duration};

use tempfile::TempDir;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::Instant,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use xomni_proto::{
    cluster::{ClusterStatus, GetStatusRequest, cluster_client::ClusterClient},
    images::GenerateImagesRequest,
};

use crate::{
    drawing::draw,
    etcd::Etcd,
    golden::Fixture,
    metrics::Metrics,
    process::{PATIENCE, Process},
};

/// Clusters of one test program, and what they are compared with, run one after the other: each wants the whole machine.
pub(crate) static TURN: Mutex<()> = Mutex::const_new(());
const POLL: Duration = Duration::from_millis(10);

/// Where the ranks of a group run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the processor, a process each.
    Cpu,
    /// On the first GPU, all of them, a process each.
    OneGpu,
    /// On a GPU each, a process each.
    Gpus,
    /// On a GPU each, threads of one process.
    GpusOfOneProcess,
}

/// What a cluster is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Backbone groups.
    pub groups: usize,
    /// Ranks of each.
    pub tp: usize,
    /// Where they run.
    pub place: Place,
    /// Decoders.
    pub decoders: usize,
    /// More arguments of each process of a group, its memory for keys and values among them.
    pub backbone: &'static [&'static str],
    /// More arguments of the coordinator.
    pub coordinator: &'static [&'static str],
    /// What has the checkpoint.
    pub fixture: fn() -> Fixture,
}

impl Shape {
    /// So many groups of so many ranks, and so many decoders, of X-Omni-nano on the processor.
    pub const fn new(groups: usize, tp: usize, decoders: usize) -> Self {
        Self {
            groups,
            tp,
            place: Place::Cpu,
            decoders,
            backbone: &["--kv-memory", "64"],
            coordinator: &[],
            fixture: Fixture::nano,
        }
    }

    /// Ranks of each process of a group.
    fn ranks(&self) -> usize {
        match self.place {
            Place::GpusOfOneProcess => self.tp,
            Place::Cpu | Place::OneGpu | Place::Gpus => 1,
        }
    }
}

/// A process that serves.
#[derive(Debug)]
pub struct Member {
    /// The process.
    pub process: Process,
    /// `host:port` of its services.
    pub address: String,
    metrics: String,
}

impl Member {
    /// Waits until a process serves.
    fn ready(mut process: Process) -> Self {
        let line = process.wait_for_line(" ready at ");
        let (address, metrics) = line.split_once(", metrics at ").expect("both addresses");
        Self {
            address: address.to_owned(),
            metrics: metrics.to_owned(),
            process,
        }
    }

    /// Its metrics now.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn metrics(&self) -> Metrics {
        Metrics::read(&self.metrics).expect("metrics")
    }

    /// A channel to its services.
    pub fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address));
        endpoint.expect("address").connect_lazy()
    }
}

/// A running cluster. Its processes end when this is dropped, and with the test.
#[derive(Debug)]
pub struct Cluster {
    /// Its etcd.
    pub etcd: Etcd,
    /// Processes of ranks, by group.
    pub groups: Vec<Vec<Member>>,
    /// Decoders.
    pub decoders: Vec<Member>,
    /// Its coordinator.
    pub coordinator: Member,
    /// To the coordinator.
    pub channel: Channel,
    shape: Shape,
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts all processes and waits until every group and decoder takes work.
    ///
    /// # Panics
    /// If they do not come so far.
    pub async fn start(shape: Shape) -> Self {
        let turn = TURN.lock().await;
        let etcd = Etcd::new();
        let folder = tempfile::tempdir().expect("folder for logs");
        let firsts = || (0..shape.tp).step_by(shape.ranks());
        let start = |group, first| start_ranks(&shape, &etcd, folder.path(), group, first);
        let groups: Vec<Vec<_>> = (0..shape.groups)
            .map(|group| firsts().map(|first| start(group, first)).collect())
            .collect();
        let decoders: Vec<_> = (0..shape.decoders)
            .map(|number| start_decoder(&shape, &etcd, folder.path(), number))
            .collect();
        let coordinator = Member::ready(start_coordinator(&shape, &etcd, folder.path()));
        let all_ready = |processes: Vec<_>| processes.into_iter().map(Member::ready).collect();
        let cluster = Self {
            groups: groups.into_iter().map(all_ready).collect(),
            decoders: all_ready(decoders),
            channel: coordinator.channel(),
            coordinator,
            shape,
            etcd,
            folder,
            _turn: turn,
        };
        cluster.until_whole().await;
        cluster
    }

    /// Starts a process of a group in place of one that has ended.
    pub fn restart_rank(&mut self, group: usize, process: usize) {
        let first = process * self.shape.ranks();
        let started = start_ranks(&self.shape, &self.etcd, self.folder.path(), group, first);
        self.groups[group][process] = Member::ready(started);
    }

    /// How the coordinator sees the cluster.
    ///
    /// # Panics
    /// If it does not say.
    pub async fn status(&self) -> ClusterStatus {
        let mut client = ClusterClient::new(self.channel.clone());
        let status = client.get_status(GetStatusRequest {}).await;
        status.expect("status").into_inner()
    }

    /// Waits until the coordinator sees what is wanted, for at most `limit`.
    ///
    /// # Panics
    /// With `what`, if it does not.
    pub async fn until_within(
        &self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&ClusterStatus) -> bool,
    ) -> ClusterStatus {
        eventually(limit, what, async || {
            let status = self.status().await;
            if wanted(&status) {
                Ok(status)
            } else {
                Err(status)
            }
        })
        .await
    }

    /// Waits until the coordinator sees what is wanted.
    ///
    /// # Panics
    /// With `what`, if it does not in good time.
    pub async fn until(
        &self,
        what: &str,
        wanted: impl Fn(&ClusterStatus) -> bool,
    ) -> ClusterStatus {
        self.until_within(PATIENCE, what, wanted).await
    }

    /// Waits until all groups and decoders take work.
    ///
    /// # Panics
    /// If they do not in good time.
    pub async fn until_whole(&self) -> ClusterStatus {
        let Shape {
            groups, decoders, ..
        } = self.shape;
        self.until("a whole cluster", |status| {
            let takes_work = status.groups.iter().filter(|group| group.takes_work);
            let develops = status.decoders.iter().filter(|one| one.takes_work);
            takes_work.count() == groups && develops.count() == decoders
        })
        .await
    }

    /// The group that runs a job.
    ///
    /// # Panics
    /// If none does in good time.
    pub async fn busy_group(&self) -> usize {
        eventually(PATIENCE, "a busy group", async || {
            let runs = |ranks: &Vec<Member>| ranks[0].metrics().get("xomni_backbone_running_jobs");
            let running: Vec<_> = self.groups.iter().map(runs).collect();
            running.iter().position(|jobs| *jobs > 0.0).ok_or(running)
        })
        .await
    }

    /// Draws pictures.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn draw(&self, request: GenerateImagesRequest) -> Result<Vec<Vec<u8>>, Status> {
        draw(&self.channel, request).await
    }
}

/// Waits until `attempt` succeeds, for at most `limit`.
///
/// # Panics
/// With `what` and what came instead, if it does not.
pub async fn eventually<T, E: std::fmt::Debug>(
    limit: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(instead) => assert!(
                Instant::now() < deadline,
                "waited {limit:?} in vain for {what}: {instead:?}"
            ),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Runs `work` within a time after which it would never end.
///
/// # Panics
/// With `what`, if it takes longer.
pub async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(3 * PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Starts the process of a group whose ranks are those from `first` on.
fn start_ranks(shape: &Shape, etcd: &Etcd, folder: &Path, group: usize, first: usize) -> Process {
    let (name, tp) = (group.to_string(), shape.tp.to_string());
    let (number, ranks) = (first.to_string(), shape.ranks().to_string());
    let place = ["--group", &name, "--tp", &tp, "--first-rank", &number];
    let limits = ["--ranks", &ranks, "--drain", "120"];
    let gpus: Vec<_> = (0..shape.tp).map(|gpu| gpu.to_string()).collect();
    let (own, all) = (format!("cuda:{first}"), gpus.join(","));
    let device: &[&str] = match shape.place {
        Place::Cpu => &[],
        Place::OneGpu => &["--device", "cuda"],
        Place::Gpus => &["--device", &own],
        Place::GpusOfOneProcess => &["--devices", &all],
    };
    let arguments = [&["backbone"], &place[..], &limits, device, shape.backbone].concat();
    let name = format!("group {group} rank {first}");
    let lo = ("NCCL_SOCKET_IFNAME", "lo");
    let variables: &[_] = match shape.place {
        // To NCCL, which does not let ranks share a GPU, each is on a machine of its own.
        Place::OneGpu => &[lo, ("NCCL_HOSTID", &number)],
        Place::Gpus | Place::GpusOfOneProcess => &[lo],
        Place::Cpu => &[],
    };
    start(
        &name,
        "xomni-worker",
        &arguments,
        variables,
        shape,
        etcd,
        folder,
    )
}

fn start_decoder(shape: &Shape, etcd: &Etcd, folder: &Path, number: usize) -> Process {
    let flux = (shape.fixture)().flux().display().to_string();
    let arguments = ["decoder", "--flux", &flux, "--drain", "120"];
    let name = format!("decoder {number}");
    start(&name, "xomni-worker", &arguments, &[], shape, etcd, folder)
}

fn start_coordinator(shape: &Shape, etcd: &Etcd, folder: &Path) -> Process {
    let arguments = [&["--drain", "120"], shape.coordinator].concat();
    start(
        "coordinator",
        "xomni-coordinator",
        &arguments,
        &[],
        shape,
        etcd,
        folder,
    )
}

fn start(
    name: &str,
    program: &str,
    own: &[&str],
    variables: &[(&str, &str)],
    shape: &Shape,
    etcd: &Etcd,
    folder: &Path,
) -> Process {
    let model = (shape.fixture)().x_omni().display().to_string();
    let endpoints = etcd.endpoints().join(",");
    let common = ["--model", &model, "--etcd", &endpoints];
    let more = ["--metrics", "127.0.0.1:0", "--die-with-parent"];
    let arguments = [own, &common, &more].concat();
    Process::start(name, program, &arguments, variables, folder)
}
