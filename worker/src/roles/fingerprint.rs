//! What determines a decoder's results to the bit.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use sha2::{Digest, Sha256};
use xomni_engine::{Error, Result, decode::WeightsSource};

use crate::group::fingerprint::KERNELS;

/// Files up to this size are hashed whole, of larger ones both ends of this size.
const ENDS: u64 = 256 << 10;
/// Suffixes of the files that do not matter where weights are random.
const WEIGHTS: [&str; 3] = ["safetensors", "pt", "bin"];
/// Depth to which folders are read.
const DEPTH: usize = 4;

/// The numerics fingerprint of a decoder: `{digest}-{KERNELS}-f32-{device}`.
///
/// The digest is a SHA-256 over the names, lengths and contents of all files in both directories;
/// of a large file it takes both ends, since reading all bytes would keep a large model from
/// starting for minutes.
///
/// # Errors
/// [`Error::Io`] for what cannot be read.
pub fn pictures(model: &Path, flux: &Path, weights: WeightsSource, device: &str) -> Result<String> {
    let mut hash = Sha256::new();
    if let WeightsSource::Random(seed) = weights {
        hash.update(seed.to_le_bytes());
    }
    for directory in [model, flux] {
        add_folder(&mut hash, directory, weights, DEPTH)?;
        hash.update([0]);
    }
    let digest: String = hash.finalize()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!("{digest}-{KERNELS}-f32-{device}"))
}

fn add_folder(
    hash: &mut Sha256,
    folder: &Path,
    weights: WeightsSource,
    depth: usize,
) -> Result<()> {
    let io = |error| Error::io(folder, error);
    let entries = std::fs::read_dir(folder).map_err(io)?;
    let entries = entries.map(|entry| entry.map(|entry| entry.path()).map_err(io));
    let mut paths = entries.collect::<Result<Vec<_>>>()?;
    paths.sort_unstable();
    for path in paths {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        // What tools leave in a folder is not the model.
        if name.starts_with(b".") {
            continue;
        }
        let is_weights = path
            .extension()
            .is_some_and(|suffix| WEIGHTS.iter().any(|known| suffix == *known));
        if path.is_dir() && depth > 0 {
            add_name(hash, name);
            add_folder(hash, &path, weights, depth - 1)?;
        } else if path.is_file() && !(is_weights && weights != WeightsSource::Checkpoint) {
            add_name(hash, name);
            add_file(hash, &path).map_err(|error| Error::io(&path, error))?;
        }
    }
    Ok(())
}

fn add_name(hash: &mut Sha256, name: &[u8]) {
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
}

fn add_file(hash: &mut Sha256, path: &Path) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    hash.update(length.to_le_bytes());
    let mut bytes = Vec::new();
    (&mut file).take(ENDS).read_to_end(&mut bytes)?;
    let tail = length.saturating_sub(ENDS).max(bytes.len() as u64);
    file.seek(SeekFrom::Start(tail))?;
    file.take(ENDS).read_to_end(&mut bytes)?;
    hash.update(&bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn of(change: impl Fn(&Path), weights: WeightsSource) -> String {
        let folder = tempfile::tempdir().expect("folder");
        let (model, flux) = (folder.path().join("model"), folder.path().join("flux"));
        fs::create_dir_all(model.join("vit")).expect("folders");
        fs::create_dir(&flux).expect("folder");
        fs::write(model.join("config.json"), "{}").expect("written");
        fs::write(model.join("vit/model.safetensors"), vec![7; 1 << 20]).expect("written");
        fs::write(flux.join("model.safetensors"), [1, 2, 3]).expect("written");
        change(folder.path());
        pictures(&model, &flux, weights, "avx2").expect("readable")
    }

    #[test]
    fn files_and_their_contents_and_the_seed_decide() {
        let stored = WeightsSource::Checkpoint;
        let unchanged = of(|_| {}, stored);
        assert_eq!(unchanged, of(|_| {}, stored));
        assert!(unchanged.ends_with("-f32-avx2"), "{unchanged}");
        let write = |name: &'static str, bytes: Vec<u8>| {
            move |root: &Path| fs::write(root.join(name), &bytes).expect("written")
        };
        let mut tail = vec![7; 1 << 20];
        tail[(1 << 20) - 1] = 8;
        for (name, bytes) in [
            ("flux/model.safetensors", vec![1, 2, 4]),
            ("flux/more", vec![]),
            ("model/config.json", b"{} ".to_vec()),
            ("model/vit/model.safetensors", tail),
        ] {
            assert_ne!(of(write(name, bytes), stored), unchanged, "{name}");
        }
        assert_eq!(of(write("flux/.lock", vec![1]), stored), unchanged);
        let random = WeightsSource::Random(1);
        let other = of(write("flux/model.safetensors", vec![]), random);
        assert_eq!(other, of(|_| {}, random));
        assert_ne!(other, of(|_| {}, WeightsSource::Random(2)));
    }
}
