//! PyTorch state dicts: a pickle and raw storages in a zip archive.

use std::{path::Path, sync::Arc};

use memmap2::Mmap;

use super::{
    DType,
    archive::StoredArchive,
    pickle::{self, StorageType, TensorView},
    stored::{StoredTensor, StoredTensors, map},
};
use crate::{Error, Result};

/// The tensors of the state dict in `path`.
pub(super) fn open(path: &Path) -> Result<StoredTensors> {
    let bytes = map(path)?;
    let archive = StoredArchive::open(&bytes, path)?;
    let top = top_folder(&archive)
        .ok_or_else(|| Error::checkpoint(path, "data.pkl", "the archive has no such entry"))?;
    let entry = |name: &str| {
        let name = format!("{top}/{name}");
        let range = archive.get(&name);
        range.ok_or_else(|| Error::checkpoint(path, name, "the archive has no such entry"))
    };
    if let Ok(range) = entry("byteorder")
        && &bytes[range.clone()] != b"little"
    {
        let found = String::from_utf8_lossy(&bytes[range]).into_owned();
        let reason = format!("must be little, is {found:?}");
        return Err(Error::checkpoint(path, "byteorder", reason));
    }
    let pickle = entry("data.pkl")?;
    let state = pickle::state_dict(&bytes[pickle]).map_err(|error| {
        let item = format!("{top}/data.pkl, byte {}", error.position);
        Error::checkpoint(path, item, error.reason)
    })?;

    let file: Arc<Path> = path.into();
    let mut tensors = StoredTensors::new();
    for (name, view) in state {
        let range = entry(&format!("data/{}", view.storage.key))?;
        let tensor = place(&view, range.start, range.len(), &bytes, &file)
            .map_err(|reason| Error::checkpoint(path, name, reason))?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

/// The folder that holds all entries, whatever its name.
fn top_folder<'a>(archive: &StoredArchive<'a>) -> Option<&'a str> {
    let folder = |name: &'a str| name.strip_suffix("/data.pkl");
    archive
        .names()
        .filter_map(folder)
        .find(|folder| !folder.contains('/'))
}

/// The tensor that `view` describes, whose storage is `length` bytes from `start`.
fn place(
    view: &TensorView<'_>,
    start: usize,
    length: usize,
    bytes: &Arc<Mmap>,
    file: &Arc<Path>,
) -> Result<StoredTensor, String> {
    let TensorView { storage, shape, .. } = view;
    let size = storage.kind.size();
    if storage.elements.checked_mul(size) != Some(length) {
        let (kind, elements) = (storage.kind, storage.elements);
        return Err(format!(
            "{elements} {kind:?} elements announced, {length} bytes stored"
        ));
    }
    let available = storage.elements.saturating_sub(view.offset);
    let (count, span) = extent(shape, &view.strides).ok_or("the sizes overflow")?;
    // More elements than the storage has would be repetitions, which a weight has no use for.
    if count > available || span > available {
        return Err(format!(
            "shape {shape:?}, strides {:?} and offset {} exceed the {} elements stored",
            view.strides, view.offset, storage.elements,
        ));
    }
    Ok(StoredTensor {
        file: file.clone(),
        map: bytes.clone(),
        offset: start + view.offset.min(storage.elements) * size,
        dtype: match storage.kind {
            StorageType::Float => Ok(DType::F32),
            StorageType::Half => Ok(DType::F16),
            StorageType::BFloat16 => Ok(DType::Bf16),
            other => Err(format!("{other:?}")),
        },
        shape: shape.clone(),
        strides: (!is_dense(shape, &view.strides)).then(|| view.strides.clone()),
    })
}

/// The number of elements, and how far the last lies from the first, that one included.
fn extent(shape: &[usize], strides: &[usize]) -> Option<(usize, usize)> {
    if shape.contains(&0) {
        return Some((0, 0));
    }
    let (mut count, mut span) = (1usize, 1usize);
    for (&dimension, &stride) in shape.iter().zip(strides) {
        count = count.checked_mul(dimension)?;
        span = span.checked_add((dimension - 1).checked_mul(stride)?)?;
    }
    Some((count, span))
}

/// Whether the elements lie in row-major order without gaps.
fn is_dense(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.contains(&0)
        || shape
            .iter()
            .zip(strides)
            .rev()
            .all(|(&dimension, &stride)| {
                let fits = dimension == 1 || stride == expected;
                expected *= dimension;
                fits
            })
}

#[cfg(test)]
mod tests;
