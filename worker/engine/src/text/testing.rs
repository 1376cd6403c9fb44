//! What the tests of this module share: the committed fixture, and ways to damage its files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use serde_json::Value;
use tempfile::TempDir;

use crate::checkpoint::{
    BackboneConfig, XOmniConfig,
    config::{DecoderConfig, EncoderConfig, TransformConfig},
};

/// A folder of the committed checkpoint.
pub(super) fn fixture(folder: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/xomni-tiny");
    Path::new(root).join(folder)
}

/// The vocabulary sizes of the committed checkpoint; the rest does not matter to a tokenizer.
pub(super) fn config() -> XOmniConfig {
    XOmniConfig {
        eos_token_ids: Vec::new(),
        backbone: BackboneConfig {
            text_vocab: 1024,
            mm_vocab: 288,
            image_vocab: 256,
            hidden: 128,
            intermediate: 296,
            layers: 6,
            adapter_layers: 1,
            head_layers: 1,
            heads: 8,
            kv_heads: 2,
            head_dim: 16,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            sliding_window: None,
            max_positions: 8192,
        },
        mm_special_tokens: ["<SOM>", "<EOM>", "<IMAGE>"].map(str::to_owned),
        transform: TransformConfig {
            short_size: 64,
            long_size: 160,
            patch_size: 16,
            filtering: true,
            min_short_size: 40,
            max_aspect_ratio: 3.0,
        },
        encoder: EncoderConfig {
            siglip_path: String::new(),
            projector_path: String::new(),
            heads: 16,
            z_channels: 64,
            codebook_size: 256,
            codebook_dim: 48,
        },
        decoder: DecoderConfig {
            model_path: String::new(),
            num_inference_steps: 4,
            cfg_scale: 2.0,
            upscale_factor: 16,
        },
    }
}

/// A copy of a folder's tokenizer files, to be damaged.
pub(super) fn copy(folder: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(folder)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        let text = path.extension().is_some_and(|e| e == "json" || e == "txt");
        if text && name != "model.safetensors.index.json" {
            fs::copy(&path, copy.path().join(name)).unwrap();
        }
    }
    copy
}

/// Rewrites one JSON file of `dir`.
pub(super) fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(name);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Runs `attempt` on damaged versions of a file: cut short, bytes changed, pieces moved.
pub(super) fn damage(dir: &Path, name: &str, mut attempt: impl FnMut()) {
    let path = dir.join(name);
    let original = fs::read(&path).unwrap();
    let mut state = 1u64;
    let mut random = |limit: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 33) as usize % limit.max(1)
    };
    for round in 0..60 {
        let mut bytes = original.clone();
        match round % 3 {
            0 => bytes.truncate(random(original.len())),
            1 => {
                for _ in 0..1 + random(8) {
                    let place = random(original.len());
                    bytes[place] = b"0\"{}[],:9e-\\\xFF\0"[random(14)];
                }
            }
            _ => {
                let (from, to) = (random(original.len()), random(original.len()));
                let piece = original[from..(from + random(40)).min(original.len())].to_vec();
                bytes.splice(to..to, piece);
            }
        }
        fs::write(&path, bytes).unwrap();
        attempt();
    }
    fs::write(&path, original).unwrap();
}

/// Arbitrary text, with what tokenizers and the grammar treat specially mixed in.
pub(super) fn any_text() -> impl Strategy<Value = String> {
    let special = prop::sample::select(vec![
        "<SOM>",
        "<EOM>",
        "<IMAGE>",
        "<SEP>",
        "<MM-Token-",
        "<MM-Token-7>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|startoftext|>",
        "</s>",
        "<pad>",
        "<extra_id_0>",
        "2 3",
        "-1 9",
        " ",
        "\n",
        "\r\n",
        "'s",
        "\0",
        "\u{301}",
        "\u{FFFD}",
        "\u{F0000}0\u{F0001}",
        "\u{4E00}",
        "1_0",
        "99999999999999999999",
        ">",
        "\u{200D}",
    ]);
    let piece = prop_oneof![
        special.prop_map(str::to_owned),
        any::<String>(),
        "\\PC{0,8}"
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}
