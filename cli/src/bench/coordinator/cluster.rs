//! A cluster to measure: a coordinator that is a process of its own, and synthetic workers in this
//! one, which find each other through an etcd as always.

use std::{convert::Infallible, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tonic::{service::Routes, transport::Channel};
use xomni_cluster::{
    Registration,
    record::{Load, Role, WorkerRecord, WorkerState},
};
use xomni_proto::PROTOCOL_VERSION;
use xomni_worker::{
    client::{Calls, RemoteBackbone, Target},
    convert::{Identity, Standing},
    process::{ClientTls, Listener},
    serve::{backbone_service, decoder_service},
};

use super::workers::Synthetic;
use crate::{
    client,
    error::CliError,
    up::{child::supervise, etcd_spec, free_port},
};

/// The cluster's name, the model's, and its numerics'.
const NAME: &str = "bench";
/// How long everything may take to be ready.
const READY: Duration = Duration::from_secs(60);
/// Between two looks at whether it is.
const POLL: Duration = Duration::from_millis(50);
/// The only epoch of a synthetic group.
const EPOCH: u64 = 1;

/// A running cluster. It ends when this is dropped.
pub struct Cluster {
    coordinator: Child,
    address: String,
    workers: Vec<String>,
    _registrations: Vec<Registration>,
    _servers: JoinSet<Infallible>,
    _standing: watch::Sender<Standing>,
    _etcd: JoinSet<()>,
    _end: watch::Sender<bool>,
    _data: TempDir,
}

/// How large a cluster is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Backbone groups.
    pub groups: usize,
    /// Decoders.
    pub decoders: usize,
    /// Requests that run at once.
    pub streams: usize,
}

impl Cluster {
    /// Starts one of synthetic workers and waits until its coordinator takes requests. `model` is
    /// the X-Omni directory whose tokenizer it uses.
    pub async fn start(model: &Path, synthetic: &Synthetic, size: Size) -> Result<Self, CliError> {
        let data = tempfile::tempdir().map_err(CliError::file(std::env::temp_dir()))?;
        let port = free_port()?;
        let (end, ended) = watch::channel(false);
        let mut etcd = JoinSet::new();
        etcd.spawn(supervise(
            etcd_spec(data.path().to_owned(), port, free_port()?),
            ended,
        ));
        let endpoints = vec![format!("127.0.0.1:{port}")];
        let records = xomni_cluster::Cluster::connect(&endpoints, NAME)
            .map_err(|error| CliError::Wrong(error.to_string()))?;

        let standing = watch::Sender::new(Standing::ready(EPOCH));
        let mut servers = JoinSet::new();
        let mut registrations = vec![];
        let mut workers = vec![];
        for index in 0..size.groups.max(size.decoders) {
            let address = serve(synthetic.clone(), identity(&standing), &mut servers).await?;
            if index < size.groups {
                registrations.push(records.register(backbone(index, &address)));
                workers.push(address.clone());
            }
            if index < size.decoders {
                let id = format!("decoder-{index}");
                registrations.push(records.register(record(id, &address, Role::Decoder)));
            }
        }
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut cluster = Self {
            coordinator: coordinator(model, &endpoints[0], &address, size.streams)?,
            address,
            workers,
            _registrations: registrations,
            _servers: servers,
            _standing: standing,
            _etcd: etcd,
            _end: end,
            _data: data,
        };
        match timeout(READY, cluster.ready()).await {
            Ok(ready) => ready.map(|()| cluster),
            Err(_) => Err(CliError::Wrong(format!("not ready after {READY:?}"))),
        }
    }

    async fn ready(&mut self) -> Result<(), CliError> {
        let channel = client::channel(&self.address, &ClientTls::default())?;
        while !client::is_serving(&channel).await {
            let ended = self.coordinator.try_wait();
            if let Some(status) = ended.map_err(CliError::file("coordinator"))? {
                return Err(CliError::Wrong(format!("the coordinator ended: {status}")));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Id of the coordinator's process.
    pub fn process(&self) -> Result<u32, CliError> {
        let id = self.coordinator.id();
        id.ok_or_else(|| CliError::Wrong("the coordinator has ended".into()))
    }

    /// So many connections to the coordinator.
    pub fn channels(&self, count: usize) -> Result<Vec<Channel>, CliError> {
        (0..count)
            .map(|_| client::channel(&self.address, &ClientTls::default()))
            .collect()
    }

    /// The groups, called without the coordinator.
    pub fn backbones(&self) -> Result<Vec<RemoteBackbone>, CliError> {
        let backbone = |address: &String| {
            let calls = Calls::new(Target {
                model: NAME.into(),
                fingerprint: NAME.into(),
                weights_version: String::new(),
                epoch: EPOCH,
            });
            Ok(RemoteBackbone::new(
                client::channel(address, &ClientTls::default())?,
                calls,
            ))
        };
        self.workers.iter().map(backbone).collect()
    }
}

/// Starts the coordinator's process.
fn coordinator(model: &Path, etcd: &str, address: &str, streams: usize) -> Result<Child, CliError> {
    let program = std::env::current_exe().map_err(CliError::file("xomni"))?;
    let streams = streams.to_string();
    Command::new(&program)
        .args(["coordinator", "--die-with-parent", "--model-name", NAME])
        .args(["--cluster", NAME, "--etcd", etcd, "--listen", address])
        .args(["--max-in-flight", &streams, "--max-queue", &streams])
        .arg("--model")
        .arg(model)
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(CliError::file(program))
}

/// Serves a worker for as long as `servers` lives, and returns its address.
async fn serve(
    synthetic: Synthetic,
    identity: Identity,
    servers: &mut JoinSet<Infallible>,
) -> Result<String, CliError> {
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let address = listener.address().to_string();
    let worker = std::sync::Arc::new(synthetic);
    let routes = Routes::new(backbone_service(worker.clone(), identity.clone()))
        .add_service(decoder_service(worker.clone(), worker, identity));
    servers.spawn(async move {
        let served = listener.serve(routes, std::future::pending(), Duration::ZERO);
        if let Err(error) = served.await {
            eprintln!("a synthetic worker failed: {error}");
        }
        std::future::pending().await
    });
    Ok(address)
}

fn identity(standing: &watch::Sender<Standing>) -> Identity {
    Identity {
        model: NAME.into(),
        fingerprint: NAME.into(),
        weights_version: String::new(),
        vocabulary: u32::MAX,
        standing: standing.subscribe(),
    }
}

fn backbone(index: usize, address: &str) -> WorkerRecord {
    let role = Role::Backbone {
        group: index.to_string(),
        first_rank: 0,
        ranks: 1,
        group_size: 1,
        epoch: EPOCH,
    };
    record(format!("backbone-{index}"), address, role)
}

fn record(id: String, address: &str, role: Role) -> WorkerRecord {
    WorkerRecord {
        id,
        address: address.to_owned(),
        protocol_version: PROTOCOL_VERSION,
        model: NAME.into(),
        fingerprint: NAME.into(),
        state: WorkerState::Ready,
        role,
        load: Load::default(),
    }
}
