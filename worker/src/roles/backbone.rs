//! A process that serves some ranks of a backbone group.

use clap::Args;
use xomni_engine::{Error, Result};

use super::arguments::Common;

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

/// Serves until a signal ends it.
///
/// # Errors
/// What kept it from loading or from serving.
pub async fn run(arguments: Arguments) -> Result<()> {
    Err(Error::Unsupported {
        what: format!("{arguments:?}"),
        reason: "no service".into(),
    })
}
