use std::fs;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::checkpoint::testing::{copy_golden, golden, golden_json, refusal, set};

mod whole;

/// A safetensors file of one-dimensional `f32` tensors.
fn write(file: &Path, tensors: &[(&str, &[f32])]) {
    let (mut header, mut data) = (json!({}), Vec::new());
    for (name, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        header[name] = json!({
            "dtype": "F32", "shape": [values.len()], "data_offsets": [start, data.len()],
        });
    }
    write_raw(file, &header.to_string(), &data);
}

fn write_raw(file: &Path, header: &str, data: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(data);
    fs::write(file, bytes).unwrap();
}

#[test]
fn missing_misshaped_non_finite_and_extra_tensors_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    write(
        &file,
        &[
            ("a", &[1.0, f32::NAN]),
            ("b", &[1.0]),
            ("c", &[]),
            ("d", &[0.0]),
        ],
    );
    let mut weights = Weights::open_safetensors(dir.path(), "model").unwrap();
    let expect = |refused: (String, String, String), item: &str, reason: &str| {
        assert_eq!(
            (refused.0.as_str(), refused.1.as_str()),
            ("model.safetensors", item)
        );
        assert!(refused.2.contains(reason), "{}", refused.2);
    };
    expect(refusal(weights.tensor("e", &[1])), "e", "missing");
    expect(
        refusal(weights.tensor("b", &[2])),
        "b",
        "shape [2], has [1]",
    );
    expect(
        refusal(weights.tensor("b", &[1, 1])),
        "b",
        "shape [1, 1], has [1]",
    );
    expect(refusal(weights.tensor("a", &[2])), "a", "element 1 is");
    assert!(weights.tensor("c", &[0]).unwrap().is_empty());
    assert_eq!(weights.tensor("b", &[1]).unwrap().to_f32(), [1.0]);
    assert_eq!(weights.tensor("b", &[1]).unwrap().file(), file);
    assert_eq!(
        (weights.contains("a"), weights.contains("e")),
        (true, false)
    );
    assert_eq!(
        (weights.shape("a"), weights.shape("e")),
        (Some(vec![2]), None)
    );
    expect(
        refusal(weights.finish(|name| name == "a")),
        "d",
        "not a tensor",
    );
}

#[test]
fn damage_to_the_golden_checkpoint_is_named() {
    let dir = copy_golden("x-omni");
    let shard = "model-00003-of-00003.safetensors";
    let mut bytes = fs::read(dir.path().join(shard)).unwrap();
    let (header, metadata) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let norm = metadata.info("model.mm_norm.weight").unwrap();
    let (start, shape) = (8 + header + norm.data_offsets.0, norm.shape.clone());
    bytes[start..start + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    fs::write(dir.path().join(shard), bytes).unwrap();

    let mut weights = Weights::open_safetensors(dir.path(), "model").unwrap();
    let (file, item, reason) = refusal(weights.tensor("model.mm_norm.weight", &shape));
    assert_eq!(
        (file.as_str(), item.as_str()),
        (shard, "model.mm_norm.weight")
    );
    assert!(reason.starts_with("element 0 "), "{reason}");
    let (file, item, reason) = refusal(weights.tensor("model.mm_norm.weight", &[127]));
    assert_eq!(
        (file.as_str(), item.as_str()),
        (shard, "model.mm_norm.weight")
    );
    assert!(reason.contains("[127], has [128]"), "{reason}");
    let (file, item, _) = refusal(weights.tensor("model.norm.weight", &[128]));
    assert_eq!(file, "model.safetensors.index.json");
    assert_eq!(item, "model.norm.weight");
    let (file, item, reason) = refusal(weights.finish(|name| name.starts_with("model.layers.")));
    assert!(file.starts_with("model-0000"), "{file}");
    assert_eq!(item, "lm_head.weight");
    assert!(reason.contains("not a tensor of this model"), "{reason}");
}

#[test]
fn random_weights_have_every_tensor() {
    let mut weights = Weights::random(1, "vae");
    assert!(weights.contains("anything"));
    assert_eq!(weights.shape("anything"), None);
    assert_eq!(weights.tensor("anything", &[2, 3]).unwrap().shape(), [2, 3]);
    weights.finish(|_| false).unwrap();
}

#[test]
fn headers_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    let tensor = |dtype: &str, shape: serde_json::Value, end: u64| {
        json!({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).to_string()
    };
    for header in [
        tensor("F32", json!([2]), 4),
        tensor("F32", json!([3]), 12),
        tensor("F32", json!([1_u64 << 62, 16]), 8),
        tensor("F32", json!([1_u64 << 61]), u64::MAX),
        tensor("F32", json!([-1]), 8),
        tensor("F33", json!([2]), 8),
        "[]".into(),
        "[".repeat(100_000),
    ] {
        write_raw(&file, &header, &[0; 8]);
        let (name, item, _) = refusal(Weights::open_safetensors(dir.path(), "model"));
        assert_eq!(
            (name.as_str(), item.as_str()),
            ("model.safetensors", "header")
        );
    }
    for bytes in [
        &[][..],
        &[1; 7],
        &u64::MAX.to_le_bytes(),
        &99_999_999_u64.to_le_bytes(),
    ] {
        fs::write(&file, bytes).unwrap();
        assert_eq!(
            refusal(Weights::open_safetensors(dir.path(), "model")).1,
            "header"
        );
    }
}

#[test]
fn types_that_no_weight_has_are_refused_only_if_taken() {
    let dir = tempfile::tempdir().unwrap();
    let header = json!({"ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}});
    write_raw(
        &dir.path().join("model.safetensors"),
        &header.to_string(),
        &[0; 8],
    );
    let mut weights = Weights::open_safetensors(dir.path(), "model").unwrap();
    assert!(refusal(weights.tensor("ids", &[1])).2.ends_with("is I64"));
    weights.finish(|name| name == "ids").unwrap();
}

#[test]
fn shards_must_be_what_the_index_says() {
    const INDEX: &str = "model.safetensors.index.json";
    const NORM: &str = "model.lm_norm.weight";
    let index = golden_json(&format!("x-omni/{INDEX}"));
    let shard = index["weight_map"][NORM].as_str().unwrap().to_owned();
    let other = "model-00001-of-00003.safetensors";
    assert_ne!(shard, other);
    let open_with = |path: &[&str], value: Option<serde_json::Value>| {
        let dir = copy_golden("x-omni");
        let mut index = index.clone();
        match path {
            [field] => set(&mut index, field, value),
            _ => {
                let map = index["weight_map"].as_object_mut().unwrap();
                match value {
                    Some(value) => map.insert(path[1].into(), value),
                    None => map.remove(path[1]),
                };
            }
        }
        fs::write(dir.path().join(INDEX), index.to_string()).unwrap();
        Weights::open_safetensors(dir.path(), "model")
    };
    let path = ["weight_map", NORM];
    let names = |result| {
        let (file, item, _) = refusal::<Weights>(result);
        (file, item)
    };

    assert_eq!(names(open_with(&path, None)), (shard.clone(), NORM.into()));
    assert_eq!(
        names(open_with(&path, Some(json!(other)))),
        (other.into(), NORM.into())
    );
    let extra = open_with(&["weight_map", "extra"], Some(json!(shard)));
    assert_eq!(names(extra), (shard, "extra".into()));
    for escape in [
        "../model-00001-of-00003.safetensors",
        "/etc/passwd",
        "",
        "a/../../b",
    ] {
        let item = format!("weight_map.{NORM}");
        assert_eq!(
            names(open_with(&path, Some(json!(escape)))),
            (INDEX.into(), item)
        );
    }
    assert_eq!(names(open_with(&["weight_map"], None)).1, "weight_map");
    let absent = open_with(&path, Some(json!("absent.safetensors"))).unwrap_err();
    assert!(
        absent.to_string().contains("absent.safetensors: "),
        "{absent}"
    );
}

#[test]
fn damaged_golden_files_do_not_panic() {
    let bytes = fs::read(golden("x-omni/model-00003-of-00003.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    for place in (0..header).step_by(7) {
        let mut flipped = bytes.clone();
        flipped[place] ^= 1 << (place % 8);
        fs::write(&file, flipped).unwrap();
        let _ = Weights::open_safetensors(dir.path(), "model");
        fs::write(&file, &bytes[..place]).unwrap();
        assert_eq!(
            refusal(Weights::open_safetensors(dir.path(), "model")).1,
            "header"
        );
    }
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(
        refusal(Weights::open_safetensors(dir.path(), "model")).1,
        "header"
    );
}

proptest! {
    #[test]
    fn random_files_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.safetensors"), &bytes).unwrap();
        let _ = Weights::open_safetensors(dir.path(), "model");
        fs::write(dir.path().join("model.safetensors.index.json"), &bytes).unwrap();
        let _ = Weights::open_safetensors(dir.path(), "model");
        let _ = Weights::open_torch(&dir.path().join("model.safetensors"));
    }
}
