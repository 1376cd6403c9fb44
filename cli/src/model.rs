//! Which model a command uses.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Args;
use xomni_engine::decode::WeightsSource;
use xomni_worker::roles::arguments::served_name;

use crate::error::CliError;

/// The checkpoint that is used where none is named: X-Omni-nano.
const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/nano");

/// The name under which it is served.
const NANO_NAME: &str = "x-omni-nano";

/// The X-Omni directory of the checkpoint that is used where none is named.
pub fn default_x_omni() -> PathBuf {
    Path::new(NANO).join("x-omni")
}

/// Directories and weights.
#[derive(Debug, Args)]
pub struct ModelArguments {
    /// X-Omni checkpoint directory
    #[arg(long, value_name = "DIR", requires = "flux")]
    pub model: Option<PathBuf>,
    /// FLUX.1-dev directory (text encoders, VAE, scheduler)
    #[arg(long, value_name = "DIR", requires = "model")]
    pub flux: Option<PathBuf>,
    /// `checkpoint`, or `random:SEED` to run the configuration without weight files
    #[arg(long, value_name = "SOURCE", default_value = "checkpoint")]
    pub weights: Weights,
}

impl ModelArguments {
    /// The X-Omni directory and the FLUX directory.
    pub fn directories(&self) -> (PathBuf, PathBuf) {
        let nano = Path::new(NANO);
        let or_nano = |given: &Option<PathBuf>, name| match given {
            Some(given) => given.clone(),
            None => nano.join(name),
        };
        (or_nano(&self.model, "x-omni"), or_nano(&self.flux, "flux"))
    }

    /// The name under which the model is served where no other is given: the directory's.
    pub fn name(&self) -> Result<String, CliError> {
        match &self.model {
            Some(model) => Ok(served_name(None, model)?),
            None => Ok(NANO_NAME.into()),
        }
    }

    /// Says in one line which model works where none is named, and what it knows.
    pub fn announce(&self) {
        if self.model.is_none() {
            eprintln!(
                "no --model: this is X-Omni-nano, which knows posters: plain shapes and short texts"
            );
        }
    }
}

/// Where weights come from, as an argument.
#[derive(Debug, Clone, Copy)]
pub struct Weights(pub WeightsSource);

impl FromStr for Weights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "checkpoint" {
            return Ok(Self(WeightsSource::Checkpoint));
        }
        let seed = text
            .strip_prefix("random:")
            .and_then(|seed| seed.parse().ok());
        let source = seed.map(WeightsSource::Random);
        source
            .map(Self)
            .ok_or_else(|| "must be checkpoint or random:SEED".into())
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            WeightsSource::Checkpoint => f.write_str("checkpoint"),
            WeightsSource::Random(seed) => write!(f, "random:{seed}"),
        }
    }
}
