//! Arguments that all roles share.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::Args;
use xomni_cluster::Cluster;
use xomni_engine::{Error, Result, decode::WeightsSource};

use crate::{group::part::authority, process::Tls};

/// Where the model is, and how the process is reached.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// X-Omni checkpoint directory
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Name under which the model is served; the directory's by default
    #[arg(long, value_name = "NAME", visible_alias = "served-model-name")]
    pub model_name: Option<String>,
    /// `checkpoint`, or `random:SEED` to run the configuration without weight files
    #[arg(long, value_name = "SOURCE", default_value = "checkpoint")]
    pub weights: String,
    /// Address of the gRPC services; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Host under which others reach this process; the listening address by default
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<String>,
    /// etcd endpoints, separated by commas
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        env = "XOMNI_ETCD"
    )]
    pub etcd: Vec<String>,
    /// Name of the cluster: the part of etcd that it lives in
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub cluster: String,
    /// Seconds that work in progress may take after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain: u64,
    /// Address at which Prometheus reads metrics; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Encryption.
    #[command(flatten)]
    pub tls: Tls,
    /// End when the process that started this one does
    #[arg(long)]
    pub die_with_parent: bool,
}

impl Common {
    /// Name under which the model is served; see [`served_name`].
    ///
    /// # Errors
    /// As there.
    pub fn served_name(&self) -> Result<String> {
        served_name(self.model_name.as_deref(), &self.model)
    }

    /// Host under which others reach what listens at `address`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for every address of the machine without a host to name.
    pub fn host(&self, address: SocketAddr) -> Result<String> {
        match &self.advertise {
            Some(host) => Ok(host.clone()),
            None if address.ip().is_unspecified() => Err(Error::Unsupported {
                what: format!("--listen {address}"),
                reason: "others need a host to call: give --advertise".into(),
            }),
            None => Ok(address.ip().to_string()),
        }
    }

    /// `host:port` under which others reach what listens at `address`.
    ///
    /// # Errors
    /// As [`Common::host`].
    pub fn advertised(&self, address: SocketAddr) -> Result<String> {
        let host = self.host(address)?;
        Ok(authority(&host, address.port()))
    }

    /// Where the weights come from.
    ///
    /// # Errors
    /// [`Error::BadInput`] for neither of the two sources.
    pub fn source(&self) -> Result<WeightsSource> {
        let seed = self.weights.strip_prefix("random:");
        match (self.weights.as_str(), seed.map(str::parse)) {
            ("checkpoint", _) => Ok(WeightsSource::Checkpoint),
            (_, Some(Ok(seed))) => Ok(WeightsSource::Random(seed)),
            (given, _) => {
                let limit = "must be checkpoint or random:SEED";
                Err(Error::bad_input("--weights", limit, given))
            }
        }
    }

    /// The cluster to register in, if any.
    ///
    /// # Errors
    /// As [`Tls::cluster`].
    pub fn cluster(&self) -> Result<Option<Cluster>> {
        if self.etcd.is_empty() {
            return Ok(None);
        }
        self.tls.cluster(&self.etcd, &self.cluster).map(Some)
    }

    /// How long work in progress may take after SIGTERM.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain)
    }
}

/// The name of a model: the one given, or else its directory's.
///
/// # Errors
/// [`Error::Unsupported`] if the directory has no name to give.
pub fn served_name(given: Option<&str>, model: &Path) -> Result<String> {
    if let Some(name) = given.filter(|name| !name.is_empty()) {
        return Ok(name.to_owned());
    }
    let directory = model.canonicalize();
    let directory = directory.map_err(|error| Error::io(model, error))?;
    let name = directory.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| Error::Unsupported {
        what: format!("--model {}", model.display()),
        reason: "its name is no text: give --model-name".into(),
    })
}

/// A name that no process of the cluster had before.
pub fn worker_id(role: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = now.map_or(0, |since| since.as_nanos());
    format!("{role}-{}-{nanos:x}", std::process::id())
}
