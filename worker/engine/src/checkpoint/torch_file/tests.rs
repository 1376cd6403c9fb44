use std::fs;

use super::*;
use crate::checkpoint::{
    HostTensor, Weights,
    testing::{PickledTensor, golden, refusal, state_dict, zip},
};

/// Writes a state dict with one storage, `0`, and opens it.
fn with_file<T>(
    tensors: &[PickledTensor<'_>],
    data: &[u8],
    use_it: impl Fn(Result<Weights>) -> T,
) -> T {
    let pickle = state_dict(tensors);
    let entries: [(&str, &[u8]); 3] = [
        ("model/data.pkl", &pickle),
        ("model/byteorder", b"little"),
        ("model/data/0", data),
    ];
    open_bytes(&zip(&entries, false), use_it)
}

fn open_bytes<T>(bytes: &[u8], use_it: impl Fn(Result<Weights>) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.pt");
    fs::write(&file, bytes).unwrap();
    use_it(Weights::open_torch(&file))
}

fn floats(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

#[test]
fn views_of_a_shared_storage() {
    let tensors: [PickledTensor<'_>; 5] = [
        ("all", "FloatStorage", "0", 6, 0, &[2, 3], &[3, 1]),
        ("tail", "FloatStorage", "0", 6, 3, &[3], &[1]),
        ("transposed", "FloatStorage", "0", 6, 0, &[3, 2], &[1, 3]),
        ("one", "FloatStorage", "0", 6, 5, &[1, 1], &[77, 5]),
        ("none", "FloatStorage", "0", 6, 6, &[0, 4], &[4, 1]),
    ];
    with_file(&tensors, &floats(6), |weights| {
        let mut weights = weights.unwrap();
        let mut values = |name, shape: &[usize]| -> Vec<f32> {
            weights
                .tensor(name, shape)
                .as_ref()
                .map(HostTensor::to_f32)
                .unwrap()
        };
        assert_eq!(values("all", &[2, 3]), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(values("tail", &[3]), [3., 4., 5.]);
        assert_eq!(values("transposed", &[3, 2]), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(values("one", &[1, 1]), [5.]);
        assert_eq!(values("none", &[0, 4]), [0.; 0]);
    });
}

#[test]
fn views_outside_of_the_storage_are_refused() {
    let cases: [(i32, &[i32], &[i32]); 6] = [
        (1, &[6], &[1]),
        (7, &[1], &[1]),
        (0, &[2, 3], &[4, 1]),
        (0, &[7], &[0]),
        (i32::MAX, &[1], &[1]),
        (0, &[i32::MAX; 4], &[i32::MAX; 4]),
    ];
    for (offset, shape, strides) in cases {
        let tensor = ("w", "FloatStorage", "0", 6, offset, shape, strides);
        let (file, item, reason) = with_file(&[tensor], &floats(6), refusal);
        assert_eq!((file.as_str(), item.as_str()), ("w.pt", "w"));
        assert!(
            reason.contains("exceed") || reason.contains("overflow"),
            "{reason}"
        );
    }
}

#[test]
fn storages_must_have_the_announced_size() {
    for (announced, stored) in [(6, 5), (5, 6), (i32::MAX, 6)] {
        let tensor = ("w", "FloatStorage", "0", announced, 0, &[1][..], &[1][..]);
        let (_, item, reason) = with_file(&[tensor], &floats(stored), refusal);
        assert_eq!(item, "w");
        assert!(reason.contains("announced"), "{reason}");
    }
    let missing = ("w", "FloatStorage", "1", 6, 0, &[6][..], &[1][..]);
    assert_eq!(with_file(&[missing], &floats(6), refusal).1, "model/data/1");
}

#[test]
fn integers_are_refused_only_if_taken() {
    let tensor = ("steps", "LongStorage", "0", 3, 0, &[3][..], &[1][..]);
    with_file(&[tensor], &floats(6), |weights| {
        let mut weights = weights.unwrap();
        let (_, item, reason) = refusal(weights.tensor("steps", &[3]));
        assert_eq!(item, "steps");
        assert!(reason.ends_with("is Long"), "{reason}");
        weights.finish(|name| name == "steps").unwrap();
    });
}

#[test]
fn a_damaged_value_of_the_golden_file_is_named() {
    let mut bytes = fs::read(golden("x-omni/vq_projector.pt")).unwrap();
    let archive = StoredArchive::open(&bytes, Path::new("")).unwrap();
    let bias = archive.get("vq_projector/data/1").unwrap();
    bytes[bias.start + 4..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    open_bytes(&bytes, |weights| {
        let mut weights = weights.unwrap();
        let (file, item, reason) = refusal(weights.tensor("quant_conv.bias", &[48]));
        assert_eq!((file.as_str(), item.as_str()), ("w.pt", "quant_conv.bias"));
        assert!(reason.starts_with("element 1 "), "{reason}");
        assert!(weights.tensor("quant_conv.weight", &[48, 64, 1, 1]).is_ok());
    });
}

#[test]
fn code_is_refused() {
    let pickle = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.";
    let (file, item, reason) = open_bytes(&zip(&[("m/data.pkl", pickle)], false), refusal);
    assert_eq!(
        (file.as_str(), item.as_str()),
        ("w.pt", "m/data.pkl, byte 13")
    );
    assert!(reason.starts_with("os.system "), "{reason}");
}

#[test]
fn foreign_archives_are_refused() {
    let big: [(&str, &[u8]); 2] = [("m/data.pkl", b"}."), ("m/byteorder", b"big")];
    assert_eq!(open_bytes(&zip(&big, true), refusal).1, "byteorder");
    let other = zip(&[("m/readme", b"hello")], false);
    assert_eq!(open_bytes(&other, refusal).1, "data.pkl");
    assert!(open_bytes(b"\x80\x02legacy", refusal).2.contains("legacy"));
    assert!(open_bytes(b"", refusal).2.contains("zip"));
}

#[test]
fn damaged_golden_files_do_not_panic() {
    let golden = fs::read(golden("x-omni/vq_projector.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.pt");
    let directory = golden
        .windows(4)
        .position(|at| at == b"PK\x01\x02")
        .unwrap();
    // The pickle lies at the front; every third byte of it and of the directory in turn.
    for place in (0..2000).chain(directory..golden.len()).step_by(3) {
        let mut bytes = golden.clone();
        bytes[place] ^= 1 << (place % 8);
        fs::write(&file, bytes).unwrap();
        if let Ok(mut weights) = Weights::open_torch(&file)
            && let Some(shape) = weights.shape("quant_conv.weight")
        {
            let _ = weights.tensor("quant_conv.weight", &shape);
        }
    }
}
