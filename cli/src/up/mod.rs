//! `xomni up`: a whole cluster on this machine.

pub mod child;
mod door;
mod ports;

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tokio::{
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

pub use self::ports::free_port;
use self::{
    child::{Spec, supervise},
    door::Door,
    ports::FreePorts,
};
use crate::{client, error::CliError, model::ModelArguments};

/// Between two looks at whether the cluster serves.
const POLL: Duration = Duration::from_millis(200);
/// How long a cluster that serves is not called ready for want of one of its processes.
const STRAGGLERS: Duration = Duration::from_secs(10);

/// Arguments of `xomni up`.
#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    model: ModelArguments,
    /// Name under which the model is served; the directory's by default
    #[arg(long, value_name = "NAME", visible_alias = "served-model-name")]
    model_name: Option<String>,
    /// Backbone groups
    #[arg(long, value_name = "GROUPS", default_value_t = 1)]
    groups: u32,
    /// Tensor-parallel degree: ranks of each group, a process each
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    tp: u32,
    /// Decoder processes
    #[arg(long, value_name = "DECODERS", default_value_t = 1)]
    decoders: u32,
    /// Address of the coordinator
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8400")]
    listen: SocketAddr,
    /// API keys that the coordinator lets in, as `xomni key` writes them; everyone by default
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// etcd endpoints, separated by commas; an own one is started by default
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    etcd: Vec<String>,
    /// Name of the cluster
    #[arg(long, value_name = "NAME", default_value = "up")]
    cluster: String,
    #[command(flatten)]
    door: Door,
}

impl Up {
    /// Runs the cluster until Ctrl-C or SIGTERM.
    pub async fn run(self) -> Result<(), CliError> {
        self.check()?;
        self.door.check()?;
        self.model.announce();
        let data = tempfile::tempdir().map_err(CliError::file(std::env::temp_dir()))?;
        let program = std::env::current_exe().map_err(CliError::file("xomni"))?;
        let mut specs = Vec::new();
        let mut ports = FreePorts::default();
        let mut etcd = self.etcd.clone();
        if etcd.is_empty() {
            let (client, peer) = (ports.next()?, ports.next()?);
            specs.push(etcd_spec(data.path().to_owned(), client, peer));
            etcd.push(format!("127.0.0.1:{client}"));
        }
        specs.extend(self.specs(&program, &etcd.join(","), &mut ports)?);
        drop(ports);
        let metrics: Vec<_> = specs.iter().map(Spec::metrics_line).collect();
        let addresses: Vec<_> = specs.iter().map(|spec| spec.metrics).collect();

        let (ended, end) = watch::channel(false);
        let mut children = JoinSet::new();
        for spec in specs {
            children.spawn(supervise(spec, end.clone()));
        }
        tokio::select! {
            () = serving(self.listen, &self.door, addresses) => {
                println!("metrics:");
                for line in metrics {
                    println!("  {line}");
                }
                println!(
                    "ready: {0} (gRPC, and HTTP at {1}://{0}/v1; Ctrl-C ends everything)",
                    self.listen,
                    self.door.scheme()
                );
                interrupted().await;
            }
            () = interrupted() => {}
        }
        eprintln!("ending");
        ended.send_replace(true);
        while children.join_next().await.is_some() {}
        Ok(())
    }

    fn check(&self) -> Result<(), CliError> {
        let limits = [
            ("--groups", self.groups, 1, 64),
            ("--decoders", self.decoders, 1, 64),
        ];
        for (name, value, low, high) in limits {
            if !(low..=high).contains(&value) {
                let limit = format!("{name}: must be {low} to {high}, got {value}");
                return Err(CliError::Argument(limit));
            }
        }
        if !matches!(self.tp, 1 | 2 | 4 | 8) {
            return Err(CliError::Argument(format!(
                "--tp: must be 1, 2, 4 or 8, got {}",
                self.tp
            )));
        }
        Ok(())
    }

    /// The coordinator, one process a rank, and the decoders.
    fn specs(
        &self,
        program: &Path,
        etcd: &str,
        ports: &mut FreePorts,
    ) -> Result<Vec<Spec>, CliError> {
        let (model, flux) = self.model.directories();
        let model_name = match &self.model_name {
            Some(name) => name.clone(),
            None => self.model.name()?,
        };
        let mut spec = |name: String, own: &[OsString]| {
            let common = [
                "--cluster".into(),
                self.cluster.clone().into(),
                "--etcd".into(),
            ];
            let mut arguments = own.to_vec();
            arguments.extend(common);
            arguments.extend([etcd.into(), "--die-with-parent".into()]);
            arguments.extend(["--model".into(), model.clone().into_os_string()]);
            arguments.extend(["--model-name".into(), model_name.clone().into()]);
            let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.next()?));
            arguments.extend(["--metrics".into(), metrics.to_string().into()]);
            Ok::<_, CliError>(Spec {
                name,
                program: program.to_owned(),
                arguments,
                metrics,
                scheme: "http",
            })
        };
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let listen = self.listen.to_string();
        let mut own = words(&["coordinator", "--listen", &listen]);
        own.extend(self.door.arguments());
        if let Some(file) = &self.api_keys {
            own.extend(["--api-keys".into(), file.clone().into_os_string()]);
        }
        let mut specs = vec![Spec {
            scheme: self.door.scheme(),
            ..spec("coordinator".into(), &own)?
        }];
        let weights = self.model.weights.to_string();
        for group in 0..self.groups {
            for rank in 0..self.tp {
                let (group, tp, rank) = (group.to_string(), self.tp.to_string(), rank.to_string());
                let own = words(&[
                    "worker",
                    "backbone",
                    "--group",
                    &group,
                    "--tp",
                    &tp,
                    "--first-rank",
                    &rank,
                    "--ranks",
                    "1",
                    "--weights",
                    &weights,
                ]);
                specs.push(spec(format!("group {group} rank {rank}"), &own)?);
            }
        }
        for decoder in 0..self.decoders {
            let mut own = words(&["worker", "decoder", "--weights", &weights, "--flux"]);
            own.push(flux.clone().into_os_string());
            specs.push(spec(format!("decoder {decoder}"), &own)?);
        }
        Ok(specs)
    }
}

/// An etcd of a cluster of this process alone, which ends with it.
pub fn etcd_spec(data: PathBuf, client: u16, peer: u16) -> Spec {
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, client));
    let client = format!("http://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    let mut arguments: Vec<OsString> = ["--pdeathsig", "TERM", "etcd", "--data-dir"]
        .map(OsString::from)
        .to_vec();
    arguments.push(data.into_os_string());
    let urls = [
        ("--listen-client-urls", &client),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", &peer),
    ];
    for (name, url) in urls {
        arguments.extend([name.into(), url.into()]);
    }
    arguments.extend(["--initial-cluster".into(), format!("default={peer}").into()]);
    arguments.extend(["--log-level".into(), "error".into()]);
    Spec {
        name: "etcd".into(),
        program: "setpriv".into(),
        arguments,
        metrics,
        scheme: "http",
    }
}

/// Ends when the coordinator says that it has a backbone and a decoder, and all processes show their metrics.
async fn serving(address: SocketAddr, door: &Door, metrics: Vec<SocketAddr>) {
    let Ok(channel) = client::channel(&address.to_string(), &door.tls) else {
        return;
    };
    while !client::is_serving(&channel).await {
        tokio::time::sleep(POLL).await;
    }
    let listening = async {
        for address in metrics {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        }
    };
    // The cluster serves without them.
    let _ = tokio::time::timeout(STRAGGLERS, listening).await;
}

/// Ends at SIGINT or SIGTERM.
async fn interrupted() {
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => return eprintln!("SIGTERM cannot be caught: {error}"),
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
