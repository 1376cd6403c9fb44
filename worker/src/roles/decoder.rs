//! A process that develops tokens into pictures, and reads pictures as tokens.

use std::path::PathBuf;

use clap::Args;
use xomni_engine::{Error, Result};

use super::arguments::Common;

/// Arguments of `xomni-worker decoder`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// FLUX.1-dev directory (text encoders, VAE, scheduler)
    #[arg(long, value_name = "DIR")]
    flux: PathBuf,
    /// Jobs that may wait
    #[arg(long, value_name = "JOBS", default_value_t = 64)]
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
