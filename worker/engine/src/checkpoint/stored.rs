//! A tensor that a mapped file offers, before its values are asked for.

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc};

use memmap2::Mmap;

use super::{DType, HostTensor, tensor::TensorBytes};
use crate::{Error, Result};

/// What one model's files offer, by name.
pub(super) type StoredTensors = BTreeMap<String, StoredTensor>;

/// Place, type and layout of a tensor. Its bytes are known to lie inside of the mapped file.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor {
    /// The file, for errors.
    pub file: Arc<Path>,
    /// Its contents.
    pub map: Arc<Mmap>,
    /// First byte of the tensor in the file.
    pub offset: usize,
    /// Element type, or the name of one that no weight has.
    pub dtype: Result<DType, String>,
    /// Dimensions, slowest first; their product fits in a `usize`.
    pub shape: Vec<usize>,
    /// Steps in elements, one a dimension; `None` if the tensor is dense and row-major.
    pub strides: Option<Vec<usize>>,
}

impl StoredTensor {
    /// The tensor itself: a view of the mapped file, or a copy where strides have to be undone.
    pub fn load(&self, name: &str) -> Result<HostTensor> {
        let dtype = *self.dtype.as_ref().map_err(|found| {
            let reason = format!("must be of type F32, F16 or BF16, is {found}");
            Error::checkpoint(&self.file, name, reason)
        })?;
        let bytes = match &self.strides {
            None => TensorBytes::Mapped {
                map: self.map.clone(),
                offset: self.offset,
                len: self.shape.iter().product::<usize>() * dtype.size(),
            },
            Some(strides) => TensorBytes::copy_of(&self.gather(strides, dtype.size())),
        };
        Ok(HostTensor::new(name, &self.file, dtype, &self.shape, bytes))
    }

    /// The elements in row-major order.
    fn gather(&self, strides: &[usize], size: usize) -> Vec<u8> {
        let count = self.shape.iter().product();
        let source = &self.map[self.offset..];
        let mut dense = Vec::with_capacity(count * size);
        let mut index = vec![0; self.shape.len()];
        let mut position = 0;
        for _ in 0..count {
            dense.extend_from_slice(&source[position * size..][..size]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                position += strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                position -= index[axis] * strides[axis];
                index[axis] = 0;
            }
        }
        dense
    }
}

/// Maps `path` for reading.
#[expect(unsafe_code, reason = "weights are used where their file is mapped")]
pub(super) fn map(path: &Path) -> Result<Arc<Mmap>> {
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    // SAFETY: the mapping is private and read-only; checkpoint files are not changed while they
    // are being served, as for every program that maps its weights.
    let map = unsafe { Mmap::map(&file) };
    map.map(Arc::new).map_err(|error| Error::io(path, error))
}
