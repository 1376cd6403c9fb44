//! The tensors of one model, by name.

use std::path::Path;

use super::HostTensor;
use crate::Result;

/// The tensors of one model: mapped safetensors (sharded or not), a `.pt` state dict, or
/// reproducible random values for any configuration.
///
/// A model takes every tensor it knows with [`Weights::tensor`] and then calls
/// [`Weights::finish`], so that a missing, misshaped, non-finite or unknown tensor is an error
/// that names the file and the tensor.
#[derive(Debug)]
pub struct Weights {}

impl Weights {
    /// Opens `{stem}.safetensors.index.json` and its shards in `dir`, or a single
    /// `{stem}.safetensors`. `stem` is `model` or `diffusion_pytorch_model`.
    pub fn open_safetensors(dir: &Path, stem: &str) -> Result<Self> {
        let _ = (dir, stem);
        todo!()
    }

    /// Opens a PyTorch state dict without executing its pickle.
    pub fn open_torch(file: &Path) -> Result<Self> {
        let _ = file;
        todo!()
    }

    /// Random values that depend on `seed`, `label` (the model's name) and the tensor's name only.
    pub fn random(seed: u64, label: &str) -> Self {
        let _ = (seed, label);
        todo!()
    }

    /// Whether `name` can be taken (always, for random weights).
    pub fn contains(&self, name: &str) -> bool {
        let _ = name;
        todo!()
    }

    /// The tensor `name`, which must have `shape` and hold finite values only. May be taken again.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        let _ = (name, shape);
        todo!()
    }

    /// The shape of `name` as stored, for sizes that only the tensors tell; `None` if absent or random.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let _ = name;
        todo!()
    }

    /// Refuses tensors that were never taken, unless `ignored` says that the format allows them.
    pub fn finish(self, ignored: impl Fn(&str) -> bool) -> Result<()> {
        let _ = ignored;
        todo!()
    }
}
