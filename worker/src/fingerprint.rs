//! What determines a worker's results to the bit, as `{digest}-{KERNELS}-{numerics}`, the last
//! being the types and the kind of device, such as `f32-cpu-{isa}`.
//!
//! The digest is a SHA-256 over the names, lengths and contents of files. Of weights it takes the
//! header of a safetensors file (names, types, shapes and places of all tensors) and both ends:
//! that tells checkpoints apart that were trained, converted or cut differently. Files of equal
//! layout that differ only in the middle it does not, since reading all bytes would keep a large
//! model from starting for minutes.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use xomni_engine::{Error, Result, decode::WeightsSource};

/// Changes with every change of a kernel, or of what is around it, that may change a result.
pub const KERNELS: u32 = 1;
/// Bytes hashed at each end of the weights in a file.
const ENDS: u64 = 64 << 10;
/// Longest accepted header of a safetensors file, as its format has it.
const MAX_HEADER: u64 = 100_000_000;
/// Suffixes of the files that hold weights, and do not matter where those are random.
const WEIGHTS: [&str; 6] = ["bin", "ckpt", "gguf", "pt", "pth", SAFETENSORS];
const SAFETENSORS: &str = "safetensors";
/// Depth to which folders are read.
const DEPTH: usize = 4;

/// The fingerprint of a backbone: over `config.json`, the index of the weights, and the weights.
///
/// # Errors
/// [`Error::Io`] or [`Error::Checkpoint`] for files that are not there or damaged.
pub fn tokens(model: &Path, weights: WeightsSource, numerics: &str) -> Result<String> {
    let mut digest = Digest::new(weights);
    digest.file(&model.join("config.json"))?;
    if weights == WeightsSource::Checkpoint {
        for file in weight_files(&mut digest, model)? {
            digest.file(&file)?;
        }
    }
    Ok(digest.finish(numerics))
}

/// The fingerprint of a decoder: over all files in both directories.
///
/// # Errors
/// [`Error::Io`] or [`Error::Checkpoint`] for what cannot be read.
pub fn pictures(
    model: &Path,
    flux: &Path,
    weights: WeightsSource,
    numerics: &str,
) -> Result<String> {
    let mut digest = Digest::new(weights);
    for directory in [model, flux] {
        digest.folder(directory, weights, DEPTH)?;
    }
    Ok(digest.finish(numerics))
}

/// The files of the `model` weights, in order of name; an index is hashed where there is one.
fn weight_files(digest: &mut Digest, model: &Path) -> Result<Vec<PathBuf>> {
    let index = model.join("model.safetensors.index.json");
    if !index.is_file() {
        return Ok(vec![model.join("model.safetensors")]);
    }
    digest.file(&index)?;
    let bytes = fs::read(&index).map_err(|error| Error::io(&index, error))?;
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

/// A hash of things that each say how long they are, so that no two sequences of them are one.
struct Digest(Sha256);

impl Digest {
    fn new(weights: WeightsSource) -> Self {
        let mut hash = Sha256::new();
        if let WeightsSource::Random(seed) = weights {
            hash.update(seed.to_le_bytes());
        }
        Self(hash)
    }

    fn finish(self, numerics: &str) -> String {
        let digest: String = self.0.finalize()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{digest}-{KERNELS}-{numerics}")
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// The files of a folder and of those in it, in order of name.
    fn folder(&mut self, folder: &Path, weights: WeightsSource, depth: usize) -> Result<()> {
        let io = |error| Error::io(folder, error);
        let entries = fs::read_dir(folder).map_err(io)?;
        let entries = entries.map(|entry| entry.map(|entry| entry.path()).map_err(io));
        let mut paths = entries.collect::<Result<Vec<_>>>()?;
        paths.sort_unstable();
        for path in paths {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            // What tools leave in a folder is not the model.
            if name.starts_with(b".") {
                continue;
            }
            if path.is_dir() && depth > 0 {
                self.bytes(name);
                self.folder(&path, weights, depth - 1)?;
            } else if path.is_file()
                && (weights == WeightsSource::Checkpoint || !has_suffix(&path, &WEIGHTS))
            {
                self.file(&path)?;
            }
        }
        self.bytes(&[]);
        Ok(())
    }

    /// A file's name, and its content: all of it, but of weights their header and both ends.
    fn file(&mut self, path: &Path) -> Result<()> {
        let io = |error| Error::io(path, error);
        self.bytes(path.file_name().unwrap_or_default().as_encoded_bytes());
        if !has_suffix(path, &WEIGHTS) {
            self.bytes(&fs::read(path).map_err(io)?);
            return Ok(());
        }
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        self.0.update(length.to_le_bytes());
        let data = match has_suffix(path, &[SAFETENSORS]) {
            true => data_start(&mut file, path, length)?,
            false => 0,
        };
        let tail = length.saturating_sub(ENDS).max(data);
        for (start, count) in [(0, data), (data, ENDS), (tail, ENDS)] {
            file.seek(SeekFrom::Start(start)).map_err(io)?;
            let mut bytes = Vec::new();
            let mut part = (&mut file).take(count);
            part.read_to_end(&mut bytes).map_err(io)?;
            self.bytes(&bytes);
        }
        Ok(())
    }
}

/// Where the tensors of a safetensors file begin.
fn data_start(file: &mut File, path: &Path, length: u64) -> Result<u64> {
    let mut header = [0; 8];
    file.read_exact(&mut header)
        .map_err(|error| Error::io(path, error))?;
    let header = u64::from_le_bytes(header);
    if header > MAX_HEADER || header + 8 > length {
        let reason = format!("{header} bytes in a file of {length}");
        return Err(Error::checkpoint(path, "header", reason));
    }
    Ok(8 + header)
}

fn has_suffix(path: &Path, suffixes: &[&str]) -> bool {
    let suffix = path.extension();
    suffix.is_some_and(|suffix| suffixes.iter().any(|known| suffix == *known))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: WeightsSource = WeightsSource::Checkpoint;

    /// A safetensors file of one tensor.
    fn safetensors(tensor: &[u8]) -> Vec<u8> {
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#,
            tensor.len()
        );
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), tensor].concat()
    }

    /// Both directories, after a change of one file.
    fn changed(name: &str, content: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir_all(folder.path().join("model/vit")).expect("folders");
        fs::create_dir(folder.path().join("flux")).expect("folder");
        let large = safetensors(&[1; 200_000]);
        for (name, content) in [
            ("model/config.json", &b"{}"[..]),
            ("model/model.safetensors", &large),
            ("model/vit/weights.pt", &[7; 300_000]),
            ("flux/model.safetensors", &safetensors(&[1, 2, 3])),
            (name, content),
        ] {
            fs::write(folder.path().join(name), content).expect("written");
        }
        folder
    }

    fn of_tokens(folder: &tempfile::TempDir, weights: WeightsSource) -> Result<String> {
        tokens(&folder.path().join("model"), weights, "f32-cpu-avx2")
    }

    fn of_pictures(folder: &tempfile::TempDir, weights: WeightsSource) -> Result<String> {
        let (model, flux) = (folder.path().join("model"), folder.path().join("flux"));
        pictures(&model, &flux, weights, "f32-cpu-avx2")
    }

    #[test]
    fn weights_configurations_seeds_and_devices_decide_of_tokens() {
        let unchanged = changed("model/config.json", b"{}");
        let first = of_tokens(&unchanged, STORED).expect("readable");
        assert!(first.ends_with("-1-f32-cpu-avx2"), "{first}");
        let mut end = vec![1; 200_000];
        end[199_999] = 2;
        for (name, content) in [
            ("model/config.json", b"{ }".to_vec()),
            ("model/model.safetensors", safetensors(&end)),
            ("model/model.safetensors", safetensors(&[1; 200_001])),
        ] {
            let other = of_tokens(&changed(name, &content), STORED);
            assert_ne!(other.expect("readable"), first, "{name}");
        }
        let other = of_tokens(&changed("model/vit/weights.pt", &[8]), STORED);
        assert_eq!(
            other.expect("readable"),
            first,
            "the backbone reads no others"
        );
        let random = |seed| of_tokens(&unchanged, WeightsSource::Random(seed)).expect("readable");
        assert_ne!(random(1), first);
        assert_ne!(random(1), random(2));
    }

    #[test]
    fn all_files_decide_of_pictures() {
        let unchanged = changed("model/config.json", b"{}");
        let first = of_pictures(&unchanged, STORED).expect("readable");
        let mut tail = vec![7; 300_000];
        tail[299_999] = 8;
        for (name, content) in [
            ("flux/model.safetensors", safetensors(&[1, 2, 4])),
            ("flux/more", vec![]),
            ("model/config.json", b"{} ".to_vec()),
            ("model/vit/weights.pt", tail),
        ] {
            let other = of_pictures(&changed(name, &content), STORED);
            assert_ne!(other.expect("readable"), first, "{name}");
        }
        let hidden = of_pictures(&changed("flux/.lock", &[1]), STORED);
        assert_eq!(hidden.expect("readable"), first);
        let random = WeightsSource::Random(1);
        let other = of_pictures(&changed("flux/model.safetensors", &[]), random);
        let random = of_pictures(&unchanged, random).expect("readable");
        assert_eq!(other.expect("readable"), random, "weights are not read");
        assert_ne!(random, first);
    }

    #[test]
    fn damaged_files_are_errors() {
        let damaged = changed("model/model.safetensors", &[0xff; 20]);
        for refused in [of_tokens(&damaged, STORED), of_pictures(&damaged, STORED)] {
            let named = matches!(refused, Err(Error::Checkpoint { .. }));
            assert!(named, "{refused:?}");
        }
        fs::remove_file(damaged.path().join("model/model.safetensors")).expect("removed");
        let refused = of_tokens(&damaged, STORED);
        assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
    }
}
