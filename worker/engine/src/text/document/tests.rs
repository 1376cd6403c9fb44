use proptest::prelude::*;

use super::*;
use crate::text::testing::{any_text, config, fixture};

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&fixture("x-omni"), &config()).unwrap()
}

#[test]
fn a_written_document_reads_back() {
    let tokenizer = tokenizer();
    let (grid, codes) = (Grid::new(2, 3), [5u32, 0, 255, 7, 7, 1]);
    let ids = Document::encode(&tokenizer, &["a cat"], &[(grid, &codes)]).unwrap();
    let document = Document::decode(&tokenizer, &ids, &[]).unwrap();
    assert_eq!(document.texts, ["a cat", ""]);
    let [image] = document.images.as_slice() else {
        panic!("{document:?}");
    };
    assert_eq!(image.prompt, "a cat");
    assert_eq!(image.check(256).unwrap(), (grid, codes.to_vec()));
    assert!(image.check(255).is_err());
}

#[test]
fn pictures_must_fit_their_grid_and_the_codebook() {
    let tokenizer = tokenizer();
    for (grid, codes) in [
        (Grid::new(1, 2), &[1u32][..]),
        (Grid::new(1, 1), &[256]),
        (Grid::new(u32::MAX, u32::MAX), &[0]),
    ] {
        assert!(Document::encode(&tokenizer, &[], &[(grid, codes)]).is_err());
    }
}

#[test]
fn absurd_grids_cost_nothing() {
    let tokenizer = tokenizer();
    let parse = |text: &str| Document::parse(&tokenizer, text, &[]).unwrap();
    for grid in [
        "99999999999999999999 99999999999999999999",
        "4000000000 4000000000",
        "-99999999999999999999 99999999999999999999",
        "-3 -3",
        "0 0",
    ] {
        let document = parse(&format!("a<SOM>{grid}<IMAGE><MM-Token-1><EOM>"));
        assert!(document.images[0].tokens.len() <= 1, "{grid}");
        assert!(document.images[0].check(256).is_err(), "{grid}");
    }
}

#[test]
fn numbers_are_read_as_python_reads_them() {
    for (text, value) in [
        (" 12\n", Some(12)),
        ("+1_000", Some(1000)),
        ("-7", Some(-7)),
        ("99999999999999999999", Some(i64::MAX)),
        ("", None),
        ("_1", None),
        ("1__0", None),
        ("1_", None),
        ("--1", None),
        ("- 1", None),
        ("1.0", None),
        ("0x1", None),
    ] {
        assert_eq!(python_int(text), value, "{text:?}");
    }
}

#[test]
fn forced_texts_replace_prompts_one_by_one() {
    let text = "a<SOM>1 1<IMAGE><MM-Token-1><EOM>b<SOM>1 1<IMAGE><MM-Token-2><EOM>";
    let document = Document::parse(&tokenizer(), text, &["forced".to_owned()]).unwrap();
    let prompts: Vec<_> = document.images.iter().map(|i| i.prompt.as_str()).collect();
    assert_eq!(prompts, ["forced", "b"]);
    assert!(document.images[0].is_single() && !document.images[1].is_single());
}

#[test]
fn an_empty_document_is_refused() {
    assert!(Document::decode(&tokenizer(), &[], &[]).is_err());
}

proptest! {
    #[test]
    fn any_text_parses_or_is_refused(text in any_text(), forced in prop::option::of(".{0,4}")) {
        let forced: Vec<String> = forced.into_iter().collect();
        let tokenizer = tokenizer();
        if let Ok(document) = Document::parse(&tokenizer, &text, &forced) {
            prop_assert!(document.texts.len() > document.images.len().saturating_sub(1));
            for image in &document.images {
                prop_assert!(image.tokens.len() * IMAGE_TOKEN.len() <= text.len());
                let _ = image.check(256);
            }
        }
    }
}
