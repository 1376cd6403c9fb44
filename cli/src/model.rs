//! Which model a command uses.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Args;
use xomni_engine::decode::WeightsSource;

/// The checkpoint that is used where none is named.
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/xomni-tiny");

/// The X-Omni directory of the checkpoint that is used where none is named.
pub fn tiny_x_omni() -> PathBuf {
    Path::new(TINY).join("x-omni")
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
        let tiny = Path::new(TINY);
        let or_tiny = |given: &Option<PathBuf>, name| match given {
            Some(given) => given.clone(),
            None => tiny.join(name),
        };
        (or_tiny(&self.model, "x-omni"), or_tiny(&self.flux, "flux"))
    }

    /// Says so, in one line, where the tiny checkpoint stands in for a real one; `works` are what
    /// it is asked for.
    pub fn announce(&self, works: &str) {
        if self.model.is_none() {
            eprintln!("no --model: this is the tiny test checkpoint, whose {works} are noise");
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
