//! Safetensors files: one, or shards under an index.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    DType,
    fields::{self, Fields},
    stored::{StoredTensor, StoredTensors, map},
};
use crate::{Error, Result};
use ::safetensors::{Dtype, SafeTensors};

/// The tensors of `{stem}.safetensors.index.json` and its shards in `dir`, or of the single file
/// `{stem}.safetensors`; with the file that lists them.
pub(super) fn open(dir: &Path, stem: &str) -> Result<(PathBuf, StoredTensors)> {
    let index = dir.join(format!("{stem}.safetensors.index.json"));
    match fields::read_optional(&index)? {
        Some(text) => {
            let tensors = open_shards(dir, &index, &text)?;
            Ok((index, tensors))
        }
        None => {
            let file = dir.join(format!("{stem}.safetensors"));
            let tensors = open_file(&file)?;
            Ok((file, tensors))
        }
    }
}

fn open_shards(dir: &Path, index: &Path, text: &str) -> Result<StoredTensors> {
    let object = fields::parse_object(text, index)?;
    let root = Fields::new(&object, index);
    let weight_map = root.section("weight_map")?;
    let mut shards: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in weight_map.names() {
        let shard = weight_map.text(name)?;
        if !fields::stays_inside(shard) {
            return Err(weight_map.refuse(name, "a file in the same directory", shard));
        }
        shards.entry(shard).or_default().insert(name);
    }
    let mut tensors = StoredTensors::new();
    for (shard, listed) in shards {
        let file = dir.join(shard);
        let held = open_file(&file)?;
        if let Some(name) = listed.iter().find(|name| !held.contains_key(**name)) {
            let reason = format!("listed in {} but not in this file", index.display());
            return Err(Error::checkpoint(&file, *name, reason));
        }
        if let Some(name) = held.keys().find(|name| !listed.contains(name.as_str())) {
            let reason = format!("in this file but not so listed in {}", index.display());
            return Err(Error::checkpoint(&file, name, reason));
        }
        tensors.extend(held);
    }
    Ok(tensors)
}

fn open_file(path: &Path) -> Result<StoredTensors> {
    let bytes = map(path)?;
    let (header, metadata) = SafeTensors::read_metadata(&bytes)
        .map_err(|error| Error::checkpoint(path, "header", error.to_string()))?;
    // The header follows its own length, a 64-bit number.
    let data = size_of::<u64>() + header;
    let file: Arc<Path> = path.into();
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let tensor = StoredTensor {
            file: file.clone(),
            map: bytes.clone(),
            offset: data + info.data_offsets.0,
            dtype: match info.dtype {
                Dtype::F32 => Ok(DType::F32),
                Dtype::F16 => Ok(DType::F16),
                Dtype::BF16 => Ok(DType::Bf16),
                other => Err(format!("{other:?}")),
            },
            shape: info.shape.clone(),
            strides: None,
        };
        (name, tensor)
    });
    Ok(tensors.collect())
}
