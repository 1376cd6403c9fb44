//! What determines a backbone's results to the bit.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest, Sha256};
use xomni_engine::{Error, Result, decode::WeightsSource};

/// Changes with every change of a kernel, or of what is around it, that may change a result.
pub const KERNELS: u32 = 1;
/// Bytes hashed at each end of a weight file.
const ENDS: u64 = 64 << 10;
/// Longest accepted header of a weight file, as the safetensors format has it.
const MAX_HEADER: u64 = 100_000_000;

/// The numerics fingerprint of a backbone: `{digest}-{KERNELS}-f32-{device}`.
///
/// The digest is a SHA-256 over `config.json`, the index, and of every weight file its name, its
/// length, its header (names, types, shapes and places of all tensors) and the first and last
/// 64 KiB of its tensors. It tells checkpoints apart that were trained, converted or cut
/// differently; files of equal layout that differ only in the middle it does not, since reading
/// all bytes would keep a large model from starting for minutes.
///
/// # Errors
/// [`Error::Io`] or [`Error::Checkpoint`] for files that are not there or no safetensors.
pub fn fingerprint(model: &Path, weights: WeightsSource, device: &str) -> Result<String> {
    let mut hash = Sha256::new();
    add_file(&mut hash, &model.join("config.json"))?;
    match weights {
        WeightsSource::Random(seed) => hash.update(seed.to_le_bytes()),
        WeightsSource::Checkpoint => {
            for file in weight_files(&mut hash, model)? {
                add_weights(&mut hash, &file)?;
            }
        }
    }
    let digest: String = hash.finalize()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!("{digest}-{KERNELS}-f32-{device}"))
}

/// The files of the `model` weights, in order of name; an index is hashed where there is one.
fn weight_files(hash: &mut Sha256, model: &Path) -> Result<Vec<PathBuf>> {
    let index = model.join("model.safetensors.index.json");
    if !index.is_file() {
        return Ok(vec![model.join("model.safetensors")]);
    }
    let bytes = add_file(hash, &index)?;
    let damaged = |reason: &str| Error::checkpoint(&index, "weight_map", reason);
    let parsed: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(&e.to_string()))?;
    let map = parsed.get("weight_map").and_then(Value::as_object);
    let names = map.ok_or_else(|| damaged("is not an object"))?.values();
    let names = names.map(|name| name.as_str().ok_or_else(|| damaged("names no file")));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(|name| model.join(name)).collect())
}

/// Adds a whole file, with its length, so that no two sequences of files are one.
fn add_file(hash: &mut Sha256, path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(&bytes);
    Ok(bytes)
}

fn add_weights(hash: &mut Sha256, path: &Path) -> Result<()> {
    let io = |error| Error::io(path, error);
    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
    hash.update(length.to_le_bytes());
    let mut header = [0; 8];
    file.read_exact(&mut header).map_err(io)?;
    let header = u64::from_le_bytes(header);
    if header > MAX_HEADER || header + 8 > length {
        let reason = format!("{header} bytes in a file of {length}");
        return Err(Error::checkpoint(path, "header", reason));
    }
    let data = 8 + header;
    let tail = length.saturating_sub(ENDS).max(data);
    for (start, count) in [(0, data), (data, ENDS), (tail, ENDS)] {
        file.seek(SeekFrom::Start(start)).map_err(io)?;
        let mut bytes = Vec::new();
        (&mut file)
            .take(count)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(tensor_bytes: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#,
            tensor_bytes.len()
        );
        let length = (header.len() as u64).to_le_bytes();
        let file = [&length[..], header.as_bytes(), tensor_bytes].concat();
        std::fs::write(dir.path().join("model.safetensors"), file).expect("written");
        std::fs::write(dir.path().join("config.json"), "{}").expect("written");
        dir
    }

    fn of(dir: &tempfile::TempDir, source: WeightsSource) -> String {
        fingerprint(dir.path(), source, "avx2").expect("readable")
    }

    #[test]
    fn tells_weights_configurations_seeds_and_devices_apart() {
        let dir = model(&[1; 200_000]);
        let first = of(&dir, WeightsSource::Checkpoint);
        assert_eq!(first, of(&model(&[1; 200_000]), WeightsSource::Checkpoint));
        assert!(first.ends_with("-1-f32-avx2"), "{first}");
        let mut end = vec![1; 200_000];
        end[199_999] = 2;
        assert_ne!(first, of(&model(&end), WeightsSource::Checkpoint));
        assert_ne!(first, of(&model(&[1; 200_001]), WeightsSource::Checkpoint));
        let random = of(&dir, WeightsSource::Random(1));
        assert_ne!(random, first);
        assert_ne!(random, of(&dir, WeightsSource::Random(2)));
        std::fs::write(dir.path().join("config.json"), "{ }").expect("written");
        assert_ne!(first, of(&dir, WeightsSource::Checkpoint));
    }

    #[test]
    fn damaged_files_are_errors() {
        let dir = model(&[1; 10]);
        let file = dir.path().join("model.safetensors");
        std::fs::write(&file, [0xff; 20]).expect("written");
        let refused = fingerprint(dir.path(), WeightsSource::Checkpoint, "avx2");
        assert!(
            matches!(refused, Err(Error::Checkpoint { .. })),
            "{refused:?}"
        );
        std::fs::remove_file(&file).expect("removed");
        let refused = fingerprint(dir.path(), WeightsSource::Checkpoint, "avx2");
        assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
    }
}
