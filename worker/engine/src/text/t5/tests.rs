use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::text::testing::{any_text, copy, damage, edit, fixture};

fn tokenizer() -> T5Tokenizer {
    T5Tokenizer::open(&fixture("flux/tokenizer_2")).unwrap()
}

#[test]
fn the_empty_prompt_is_one_end_token() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("").unwrap();
    assert_eq!(ids.len(), T5_LENGTH);
    assert_eq!(ids[0], tokenizer.end);
    assert!(ids[1..].iter().all(|&id| id == tokenizer.pad));
}

#[test]
fn white_space_is_mapped_joined_and_stripped() {
    let tokenizer = tokenizer();
    let ids = |text| tokenizer.encode_untruncated(text).unwrap();
    assert_eq!(ids("a fox"), ids("a\tfox \n"));
    assert_eq!(ids("the fox"), ids("ｔｈｅ fox"));
}

#[test]
fn long_prompts_end_with_the_end_token() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(&"fox ".repeat(4000)).unwrap();
    assert_eq!(ids.len(), T5_LENGTH);
    assert_eq!(ids.last(), Some(&tokenizer.end));
    assert!(ids.iter().all(|&id| id < tokenizer.vocab()));
}

#[test]
fn damaged_files_never_panic() {
    let dir = copy("flux/tokenizer_2");
    damage(dir.path(), "tokenizer.json", || {
        if let Ok(tokenizer) = T5Tokenizer::open(dir.path()) {
            let _ = tokenizer.encode("A red fox ™ ½ 猫");
        }
    });
}

#[test]
fn damaged_character_maps_never_panic() {
    let dir = copy("flux/tokenizer_2");
    let mut map = Vec::new();
    edit(dir.path(), "tokenizer.json", |v| {
        let text = v["normalizer"]["normalizers"][0]["precompiled_charsmap"].as_str();
        map = STANDARD.decode(text.unwrap()).unwrap();
    });
    for round in 0..40usize {
        let mut damaged = map.clone();
        for step in 0..round {
            let place = (round * 7919 + step * 104_729) % damaged.len();
            damaged[place] ^= 1 << (step % 8);
        }
        edit(dir.path(), "tokenizer.json", |v| {
            v["normalizer"]["normalizers"][0]["precompiled_charsmap"] =
                json!(STANDARD.encode(&damaged));
        });
        if let Ok(tokenizer) = T5Tokenizer::open(dir.path()) {
            for start in (0..0x3000).step_by(64) {
                let text: String = (start..start + 64).filter_map(char::from_u32).collect();
                let _ = tokenizer.encode(&text);
            }
        }
    }
}

#[test]
fn foreign_components_are_refused() {
    let changes: [fn(&mut Value); 6] = [
        |v| v["normalizer"] = json!({"type": "NFC"}),
        |v| v["normalizer"]["normalizers"][1]["strip_left"] = json!(true),
        |v| v["pre_tokenizer"]["prepend_scheme"] = json!("never"),
        |v| v["model"]["unk_id"] = json!(1_000_000),
        |v| v["model"]["byte_fallback"] = json!(true),
        |v| v["model"]["vocab"] = json!([]),
    ];
    for change in changes {
        let dir = copy("flux/tokenizer_2");
        edit(dir.path(), "tokenizer.json", change);
        let error = T5Tokenizer::open(dir.path()).unwrap_err();
        assert!(
            matches!(&error, Error::Checkpoint { file, .. } if file.ends_with("tokenizer.json")),
            "{error}"
        );
    }
}

proptest! {
    #[test]
    fn any_text_encodes(text in any_text()) {
        let ids = tokenizer().encode(&text).unwrap();
        prop_assert_eq!(ids.len(), T5_LENGTH);
    }
}
