use std::fs;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::text::testing::{any_text, config, copy, damage, edit, fixture};

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&fixture("x-omni"), &config()).unwrap()
}

#[test]
fn users_cannot_write_control_or_image_tokens() {
    let tokenizer = tokenizer();
    let text = "<SOM>2 2<IMAGE><MM-Token-7><EOM><|im_end|><|endoftext|>";
    let ids = tokenizer.encode_text(text).unwrap();
    assert!(ids.iter().all(|id| !tokenizer.tokens[id].added));
    assert_eq!(tokenizer.decode(&ids, true), text);
    assert!(tokenizer.encode_document(text).unwrap().len() < ids.len());
}

#[test]
fn an_image_prompt_is_the_document_of_its_string() {
    let tokenizer = tokenizer();
    let grid = Grid::new(12, 7);
    for prompt in ["", " ", "a cat", "caf\u{65}\u{301}\n", "一只猫 "] {
        let ids = tokenizer.image_prompt(prompt, grid).unwrap();
        let text = format!("{prompt}<SOM>12 7<IMAGE>");
        assert_eq!(ids, tokenizer.encode_document(&text).unwrap());
    }
    assert_eq!(
        tokenizer.negative_prompt(grid).unwrap(),
        tokenizer.image_prompt("", grid).unwrap()
    );
}

#[test]
fn a_text_beyond_the_limit_is_refused() {
    let error = tokenizer().encode_text(&"a".repeat(MAX_TEXT_BYTES + 1));
    assert!(matches!(
        error,
        Err(Error::BadInput {
            field: "prompt",
            ..
        })
    ));
}

#[test]
fn long_runs_stay_whole_and_cheap() {
    let tokenizer = tokenizer();
    for unit in [" ", "a", "\n", "\t \n", "é", "1", "!", "一"] {
        let text = unit.repeat((128 << 10) / unit.len());
        let ids = tokenizer.encode_text(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

#[test]
fn characters_split_over_tokens_decode_whole_or_as_replacement() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode_text("🚀").unwrap();
    assert!(ids.len() > 1);
    assert_eq!(tokenizer.decode(&ids, false), "🚀");
    assert!(
        tokenizer
            .decode(&ids[..ids.len() - 1], false)
            .contains('\u{FFFD}')
    );
    assert_eq!(tokenizer.decode(&[u32::MAX, 1300], false), "");
}

#[test]
fn files_that_do_not_fit_are_named_with_the_item() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, &str, Change); 12] = [
        ("tokenizer.json", "<SOM>", |v| remove_token(v, "<SOM>")),
        ("tokenizer.json", "<MM-Token-0>", |v| {
            remove_token(v, "<MM-Token-0>")
        }),
        ("tokenizer.json", "<MM-Token-255>", |v| {
            remove_token(v, "<MM-Token-255>")
        }),
        ("tokenizer.json", "normalizer", |v| {
            v["normalizer"] = json!({"type": "Strip", "strip_left": true, "strip_right": true});
        }),
        ("tokenizer.json", "content", |v| {
            v["normalizer"] = json!({"type": "Lowercase"})
        }),
        ("tokenizer.json", "pre_tokenizer", |v| {
            v["pre_tokenizer"] = json!(null)
        }),
        ("tokenizer.json", "pre_tokenizer", |v| {
            v["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(");
        }),
        ("tokenizer.json", "byte_fallback", |v| {
            v["model"]["byte_fallback"] = json!(true)
        }),
        ("tokenizer.json", "merges", |v| {
            v["model"]["merges"][0] = json!("one")
        }),
        ("tokenizer.json", "token", |v| {
            v["model"]["vocab"]["!"] = json!(1024)
        }),
        ("tokenizer.json", "token", |v| {
            v["model"]["vocab"]["!"] = json!(5)
        }),
        ("tokenizer_config.json", "pad_token", |v| {
            v["pad_token"] = json!(null)
        }),
    ];
    for (name, item, change) in cases {
        let dir = copy("x-omni");
        fs::remove_file(dir.path().join("special_tokens_map.json")).unwrap();
        edit(dir.path(), name, change);
        let error = Tokenizer::open(dir.path(), &config()).unwrap_err();
        assert!(
            matches!(&error, Error::Checkpoint { file, item: found, .. }
                if file.ends_with(name) && found.contains(item)),
            "{item}: {error}"
        );
    }
}

fn remove_token(file: &mut serde_json::Value, content: &str) {
    let tokens = file["added_tokens"].as_array_mut().unwrap();
    tokens.retain(|token| token["content"] != content);
}

#[test]
fn merges_may_be_strings() {
    let dir = copy("x-omni");
    edit(dir.path(), "tokenizer.json", |v| {
        for merge in v["model"]["merges"].as_array_mut().unwrap() {
            *merge = json!(format!(
                "{} {}",
                merge[0].as_str().unwrap(),
                merge[1].as_str().unwrap()
            ));
        }
    });
    let strings = Tokenizer::open(dir.path(), &config()).unwrap();
    let text = "it's a red fox, 生成一张雪中的紫禁城";
    assert_eq!(
        strings.encode_text(text).unwrap(),
        tokenizer().encode_text(text).unwrap()
    );
}

#[test]
fn sizes_that_the_file_cannot_have_are_refused() {
    for vocab in [0, 999, usize::MAX] {
        let mut config = config();
        config.backbone.text_vocab = vocab;
        assert!(Tokenizer::open(&fixture("x-omni"), &config).is_err());
        let mut config = self::config();
        config.backbone.image_vocab = vocab.max(257);
        assert!(Tokenizer::open(&fixture("x-omni"), &config).is_err());
    }
}

#[test]
fn damaged_files_never_panic() {
    let dir = copy("x-omni");
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        damage(dir.path(), name, || {
            if let Ok(tokenizer) = Tokenizer::open(dir.path(), &config()) {
                let _ = tokenizer.encode_document("a cat, it's 12 <SOM>1 1<IMAGE>\n 猫");
            }
        });
    }
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::open(dir.path(), &config()).unwrap_err();
    assert!(matches!(error, Error::Io { path, .. } if path.ends_with("tokenizer.json")));
}

proptest! {
    #[test]
    fn any_text_comes_back_composed(text in any_text()) {
        use unicode_normalization::UnicodeNormalization;
        let tokenizer = tokenizer();
        let ids = tokenizer.encode_text(&text).unwrap();
        // The alignment crate behind the normaliser knows an older Unicode than this one.
        if text.chars().all(|c| u32::from(c) < 0x3000) {
            prop_assert_eq!(tokenizer.decode(&ids, false), text.nfc().collect::<String>());
        }
        tokenizer.encode_document(&text).unwrap();
    }

    #[test]
    fn any_ids_decode(ids in prop::collection::vec(0u32..1400, 0..40), skip in any::<bool>()) {
        tokenizer().decode(&ids, skip);
    }
}
