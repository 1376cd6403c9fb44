use std::fs;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::text::testing::{any_text, copy, damage, edit, fixture};

fn tokenizer() -> ClipTokenizer {
    ClipTokenizer::open(&fixture("flux/tokenizer")).unwrap()
}

#[test]
fn cleaning_follows_the_reference() {
    let tokenizer = tokenizer();
    for (text, cleaned) in [
        ("  A\tRed\r\nFox ", "a red fox"),
        ("a\0b\u{FFFD}c\u{200D}d\u{7}e", "abcde"),
        ("红色fox", "红 色 fox"),
        ("CAFE\u{301}", "caf\u{e9}"),
        ("ΟΔΟΣ", "οδος"),
        ("a\u{3000}b\u{2028}c\u{B}d", "a b cd"),
        ("", ""),
    ] {
        assert_eq!(tokenizer.clean(text), cleaned, "{text:?}");
    }
}

#[test]
fn special_tokens_in_a_prompt_are_special_as_in_the_reference() {
    let tokenizer = tokenizer();
    let (start, end) = (tokenizer.start, tokenizer.end);
    let ids = tokenizer
        .encode_untruncated("<|startoftext|> <|EndOfText|>")
        .unwrap();
    assert_eq!(ids, [start, start, end, end]);
}

#[test]
fn long_prompts_end_with_the_end_token() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(&"fox ".repeat(1000)).unwrap();
    assert_eq!(ids.len(), CLIP_LENGTH);
    assert_eq!(ids.last(), Some(&tokenizer.end));
    assert_eq!(ids.iter().filter(|&&id| id == tokenizer.end).count(), 1);
    assert!(ids.iter().all(|&id| id < tokenizer.vocab()));
}

#[test]
fn damaged_files_never_panic() {
    let dir = copy("flux/tokenizer");
    for name in ["vocab.json", "merges.txt"] {
        damage(dir.path(), name, || {
            if let Ok(tokenizer) = ClipTokenizer::open(dir.path()) {
                let _ = tokenizer.encode("A red fox, it's 12 猫");
            }
        });
    }
}

#[test]
fn incomplete_vocabularies_are_named() {
    for (item, id) in [("<|endoftext|>", None), ("!</w>", None), ("a", Some(5))] {
        let dir = copy("flux/tokenizer");
        edit(dir.path(), "vocab.json", |vocab| match id {
            Some(id) => vocab[item] = json!(id),
            None => drop(vocab.as_object_mut().unwrap().remove(item)),
        });
        let error = ClipTokenizer::open(dir.path()).unwrap_err();
        assert!(
            matches!(&error, Error::Checkpoint { file, .. } if file.ends_with("vocab.json")),
            "{error}"
        );
    }
    let dir = copy("flux/tokenizer");
    fs::write(dir.path().join("merges.txt"), "#version: 0.2\nt h\nt\n").unwrap();
    let error = ClipTokenizer::open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint { item, .. } if item == "line 3"));
}

proptest! {
    #[test]
    fn any_text_encodes(text in any_text()) {
        let ids = tokenizer().encode(&text).unwrap();
        prop_assert_eq!(ids.len(), CLIP_LENGTH);
    }
}
