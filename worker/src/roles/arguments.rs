//! Arguments that all roles share.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

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
