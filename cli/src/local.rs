//! A model in this process, as arguments.

use clap::Args;
use xomni_engine::parallel::Shard;
use xomni_worker::local::LocalConfig;

use crate::{error::CliError, model::ModelArguments};

/// What to load, and how much of the machine it takes.
#[derive(Debug, Args)]
pub struct LocalArguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// Tensor-parallel degree: ranks run as threads
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    tp: usize,
    /// Memory for keys and values, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    kv_memory: usize,
}

impl LocalArguments {
    /// What to load, from arguments that can work.
    pub fn config(&self) -> Result<LocalConfig, CliError> {
        Shard::new(0, self.tp).map_err(|error| CliError::Argument(format!("--tp: {error}")))?;
        let most = usize::MAX >> 20;
        let kv_bytes = self
            .kv_memory
            .checked_mul(1 << 20)
            .filter(|&bytes| bytes > 0);
        let kv_bytes = kv_bytes.ok_or_else(|| {
            let got = self.kv_memory;
            CliError::Argument(format!("--kv-memory: must be 1 to {most} MiB, got {got}"))
        })?;
        let (model, flux) = self.model.directories();
        for (option, folder) in [("--model", &model), ("--flux", &flux)] {
            if !folder.is_dir() {
                let name = folder.display();
                return Err(CliError::Argument(format!("{option}: {name} is no folder")));
            }
        }
        Ok(LocalConfig {
            model,
            flux,
            weights: self.model.weights.0,
            ranks: self.tp,
            kv_bytes,
            // All requests are this command's own.
            max_queue: usize::MAX,
        })
    }
}
