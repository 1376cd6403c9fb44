use std::collections::HashMap;

use serde::Deserialize;
use xomni_engine::{
    checkpoint::XOmniConfig,
    text::{ChatTemplate, Document, Grid, Message, Part, Role, Tokenizer},
};
use xomni_tests::golden::Fixture;

#[derive(Deserialize)]
struct Tokens {
    image_vocab_size: u32,
    special_ids: HashMap<String, u32>,
    pad_token: String,
    eos_token: String,
    len_tokenizer: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    text: String,
    ids: Vec<u32>,
    tokens: Vec<String>,
    decoded: String,
    decoded_skip_special: String,
}

#[derive(Deserialize)]
struct Prompts {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    prompt: String,
    grid_h: u32,
    grid_w: u32,
    model_input: String,
    input_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Understanding {
    picture: String,
    question: String,
    chat_text: String,
    input_ids: Vec<u32>,
    generated_ids: Vec<u32>,
    generated_text: String,
    mmdecode_of_all_but_last: String,
    eos_token_id: u32,
}

#[derive(Deserialize)]
struct Pictures {
    pictures: Vec<Picture>,
}

#[derive(Deserialize)]
struct Picture {
    file: String,
    grid_h: Option<u32>,
    grid_w: Option<u32>,
    tokens: Option<Vec<u32>>,
    image_string: Option<String>,
    image_string_ids: Option<Vec<u32>>,
}

pub(crate) fn tokenizer(fixture: &Fixture) -> Tokenizer {
    let dir = fixture.x_omni();
    let config = XOmniConfig::open(&dir).expect("config.json");
    Tokenizer::open(&dir, &config).expect("tokenizer")
}

#[test]
fn golden_01_tokenizer() {
    let fixture = Fixture::open();
    let tokenizer = tokenizer(&fixture);
    let golden: Tokens = fixture.json("01_tokenizer");

    for (token, id) in &golden.special_ids {
        assert_eq!(tokenizer.token_id(token), Some(*id), "{token}");
    }
    assert_eq!(tokenizer.token_id(&golden.pad_token), Some(tokenizer.pad()));
    assert_eq!(tokenizer.token_id(&golden.eos_token), Some(tokenizer.eos()));
    assert_eq!(tokenizer.known_ids(), golden.len_tokenizer);
    assert_eq!(tokenizer.image_token_id(golden.image_vocab_size), None);

    for case in &golden.cases {
        let ids = tokenizer.encode_document(&case.text).unwrap();
        assert_eq!(ids, case.ids, "{}", case.name);
        let tokens: Vec<_> = case.tokens.iter().map(|t| tokenizer.token_id(t)).collect();
        let expected: Vec<_> = case.ids.iter().map(|&id| Some(id)).collect();
        assert_eq!(tokens, expected, "{}", case.name);
        let decoded = tokenizer.decode(&case.ids, false);
        assert_eq!(decoded, case.decoded, "{}", case.name);
        let skipped = tokenizer.decode(&case.ids, true);
        assert_eq!(skipped, case.decoded_skip_special, "{}", case.name);
    }
}

#[test]
fn golden_02_image_prompts() {
    let fixture = Fixture::open();
    let tokenizer = tokenizer(&fixture);
    let golden: Prompts = fixture.json("02_backbone");
    for case in &golden.prompts {
        let grid = Grid::new(case.grid_h, case.grid_w);
        let ids = tokenizer.image_prompt(&case.prompt, grid).unwrap();
        assert_eq!(ids, case.input_ids);
        assert_eq!(ids, tokenizer.encode_document(&case.model_input).unwrap());
        let negative = tokenizer.negative_prompt(grid).unwrap();
        assert!(ids.ends_with(&negative));
    }
}

#[test]
fn golden_04_chat_ids() {
    let fixture = Fixture::open();
    let tokenizer = tokenizer(&fixture);
    let template = ChatTemplate::open(&fixture.x_omni()).unwrap();
    let golden: Understanding = fixture.json("04_understanding");
    let pictures: Pictures = fixture.json("05_image_tokenizer");
    let picture = pictures.pictures.iter().find(|p| golden.picture == p.file);
    let picture = picture.expect("the picture of the chat is tokenised in case 05");
    let (grid, codes) = grid_and_codes(picture).expect("it is accepted");

    let messages = [Message {
        role: Role::User,
        content: vec![
            Part::Picture { grid, codes },
            Part::Text(format!("\n{}", golden.question)),
        ],
    }];
    let text = template.render(&tokenizer, &messages, true).unwrap();
    assert_eq!(text, golden.chat_text);
    let ids = template.encode(&tokenizer, &messages, true).unwrap();
    assert_eq!(ids, golden.input_ids);
    assert_eq!(ids, tokenizer.encode_document(&text).unwrap());

    assert_eq!(tokenizer.eos(), golden.eos_token_id);
    let answer = tokenizer.decode(&golden.generated_ids, false);
    assert_eq!(answer, golden.generated_text);
    let kept = &golden.generated_ids[..golden.generated_ids.len() - 1];
    let answer = Document::decode(&tokenizer, kept, &[]).unwrap();
    assert_eq!(answer.texts[0], golden.mmdecode_of_all_but_last);
}

#[test]
fn golden_05_image_strings() {
    let fixture = Fixture::open();
    let tokenizer = tokenizer(&fixture);
    let golden: Pictures = fixture.json("05_image_tokenizer");
    for picture in &golden.pictures {
        let Some((grid, codes)) = grid_and_codes(picture) else {
            continue;
        };
        let text = tokenizer.image_string(grid, &codes);
        assert_eq!(Some(&text), picture.image_string.as_ref());
        let ids = Document::encode(&tokenizer, &[], &[(grid, &codes)]).unwrap();
        assert_eq!(Some(&ids), picture.image_string_ids.as_ref());
    }
}

fn grid_and_codes(picture: &Picture) -> Option<(Grid, Vec<u32>)> {
    let grid = Grid::new(picture.grid_h?, picture.grid_w?);
    Some((grid, picture.tokens.clone()?))
}
