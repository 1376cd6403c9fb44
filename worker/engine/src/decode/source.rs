//! Where a service's weights come from.

use std::path::Path;

use crate::{Result, checkpoint::Weights};

/// Stored weights, or random ones of the configured sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightsSource {
    /// The files of the checkpoint.
    Checkpoint,
    /// Reproducible values from a seed; no weight file is opened.
    Random(u64),
}

impl WeightsSource {
    /// The weights of `{stem}.safetensors` (sharded or not) in `dir`, or random ones of model
    /// `label`.
    ///
    /// # Errors
    /// As [`Weights::open_safetensors`].
    pub fn safetensors(self, dir: &Path, stem: &str, label: &str) -> Result<Weights> {
        match self {
            Self::Checkpoint => Weights::open_safetensors(dir, stem),
            Self::Random(seed) => Ok(Weights::random(seed, label)),
        }
    }

    /// The weights of a PyTorch file, or random ones of model `label`.
    pub(super) fn torch(self, file: &Path, label: &str) -> Result<Weights> {
        match self {
            Self::Checkpoint => Weights::open_torch(file),
            Self::Random(seed) => Ok(Weights::random(seed, label)),
        }
    }
}
