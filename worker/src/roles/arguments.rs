//! Arguments that all roles share.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use xomni_engine::{Error, Result, decode::WeightsSource};

/// Where the model is, and how the process is reached.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// X-Omni checkpoint directory
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Name under which the model is served; the directory's by default
    #[arg(long, value_name = "NAME")]
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
    /// End when the process that started this one does
    #[arg(long)]
    pub die_with_parent: bool,
}

impl Common {
    /// Where the weights come from.
    ///
    /// # Errors
    /// [`Error::BadInput`] for anything else than `checkpoint` and `random:SEED`.
    pub fn source(&self) -> Result<WeightsSource> {
        let seed = self.weights.strip_prefix("random:");
        match (self.weights.as_str(), seed.map(str::parse)) {
            ("checkpoint", _) => Ok(WeightsSource::Checkpoint),
            (_, Some(Ok(seed))) => Ok(WeightsSource::Random(seed)),
            (given, _) => {
                let limit = "must be checkpoint or random:SEED";
                Err(Error::bad_input("weights", limit, given))
            }
        }
    }

    /// Name under which the model is served.
    pub fn model_name(&self) -> String {
        let named = self.model_name.clone();
        let directory = self.model.canonicalize().unwrap_or(self.model.clone());
        let name = directory
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        named.or(name).unwrap_or_else(|| "model".into())
    }

    /// Host under which others reach a process that listens on `bound`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if that is every address and none is advertised.
    pub fn host(&self, bound: SocketAddr) -> Result<String> {
        match &self.advertise {
            Some(host) => Ok(host.clone()),
            None if bound.ip().is_unspecified() => Err(Error::Unsupported {
                what: format!("--listen {bound} without --advertise"),
                reason: "others cannot reach a process at every address".into(),
            }),
            None => Ok(bound.ip().to_string()),
        }
    }
}
