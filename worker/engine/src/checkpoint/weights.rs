//! The tensors of one model, by name.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use super::{HostTensor, random::Generator, safetensors, stored::StoredTensors, torch_file};
use crate::{Error, Result};

/// The tensors of one model: mapped safetensors (sharded or not), a `.pt` state dict, or
/// reproducible random values for any configuration.
///
/// A model takes every tensor it knows with [`Weights::tensor`] and then calls
/// [`Weights::finish`], so that a missing, misshaped, non-finite or unknown tensor is an error
/// that names the file and the tensor.
#[derive(Debug)]
pub struct Weights {
    source: Source,
    taken: HashSet<String>,
}

#[derive(Debug)]
enum Source {
    Stored {
        /// The file that lists the tensors; named where one is missing.
        list: PathBuf,
        tensors: StoredTensors,
    },
    Random(Generator),
}

impl Weights {
    /// Opens `{stem}.safetensors.index.json` and its shards in `dir`, or a single
    /// `{stem}.safetensors`. `stem` is `model` or `diffusion_pytorch_model`.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read; [`Error::Checkpoint`] for a damaged header, a
    /// shard outside `dir`, or a tensor that is not in the shard that the index names.
    pub fn open_safetensors(dir: &Path, stem: &str) -> Result<Self> {
        let (list, tensors) = safetensors::open(dir, stem)?;
        Ok(Self::new(Source::Stored { list, tensors }))
    }

    /// Opens a PyTorch state dict without executing its pickle.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Checkpoint`] if it is damaged, is not a
    /// state dict in the zip format of `torch.save`, or its pickle asks for anything else than
    /// building one.
    pub fn open_torch(file: &Path) -> Result<Self> {
        Ok(Self::new(Source::Stored {
            list: file.to_owned(),
            tensors: torch_file::open(file)?,
        }))
    }

    /// Random values that depend on `seed`, `label` (the model's name) and the tensor's name only.
    pub fn random(seed: u64, label: &str) -> Self {
        Self::new(Source::Random(Generator::new(seed, label)))
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            taken: HashSet::new(),
        }
    }

    /// Whether `name` can be taken (always, for random weights).
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Stored { tensors, .. } => tensors.contains_key(name),
            Source::Random(_) => true,
        }
    }

    /// The tensor `name`, which must have `shape` and hold finite values only. May be taken again.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the tensor is missing, of another shape or element type, or holds
    /// an infinity or NaN; [`Error::Capacity`] if there is no memory for random values.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        let (list, tensors) = match &self.source {
            Source::Stored { list, tensors } => (list, tensors),
            Source::Random(generator) => return generator.tensor(name, shape),
        };
        let stored = tensors
            .get(name)
            .ok_or_else(|| Error::checkpoint(list, name, "the tensor is missing"))?;
        if stored.shape != shape {
            let reason = format!("must have shape {shape:?}, has {:?}", stored.shape);
            return Err(Error::checkpoint(&stored.file, name, reason));
        }
        let tensor = stored.load(name)?;
        // Every rank takes the tensors that it needs a part of; their values are looked at once.
        if !self.taken.contains(name) {
            if let Some(element) = tensor.first_non_finite() {
                let reason = format!("element {element} is infinite or not a number");
                return Err(Error::checkpoint(&stored.file, name, reason));
            }
            self.taken.insert(name.to_owned());
        }
        Ok(tensor)
    }

    /// The shape of `name` as stored, for sizes that only the tensors tell; `None` if absent or random.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match &self.source {
            Source::Stored { tensors, .. } => Some(tensors.get(name)?.shape.clone()),
            Source::Random(_) => None,
        }
    }

    /// Refuses tensors that were never taken, unless `ignored` says that the format allows them.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the first such tensor, in the order of names.
    pub fn finish(self, ignored: impl Fn(&str) -> bool) -> Result<()> {
        let Source::Stored { tensors, .. } = &self.source else {
            return Ok(());
        };
        let mut unknown = tensors
            .iter()
            .filter(|(name, _)| !self.taken.contains(*name) && !ignored(name));
        match unknown.next() {
            None => Ok(()),
            Some((name, stored)) => {
                let more = unknown.count();
                let reason = format!("not a tensor of this model (and {more} more)");
                Err(Error::checkpoint(&stored.file, name, reason))
            }
        }
    }
}

#[cfg(test)]
mod tests;
