use serde::Deserialize;
use xomni_engine::text::{ClipTokenizer, T5Tokenizer};
use xomni_tests::golden::Fixture;

const CASE: &str = "06_text_encoders";

#[derive(Deserialize)]
struct Golden {
    clip_max_length: usize,
    t5_max_length: usize,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    name: String,
    prompt: String,
    clip_ids_untruncated: Vec<u32>,
    t5_ids_untruncated: Vec<u32>,
}

#[test]
fn golden_06_clip_ids() {
    let fixture = Fixture::open();
    let golden: Golden = fixture.json(CASE);
    let tensors = fixture.tensors(CASE);
    let tokenizer = ClipTokenizer::open(&fixture.flux().join("tokenizer")).unwrap();
    for case in &golden.prompts {
        let ids = tokenizer.encode_untruncated(&case.prompt).unwrap();
        assert_eq!(ids, case.clip_ids_untruncated, "{}", case.name);
        let ids = tokenizer.encode(&case.prompt).unwrap();
        assert_eq!(ids.len(), golden.clip_max_length);
        assert_eq!(ids, tensors.ids(&format!("{}.clip_ids", case.name)));
    }
}

#[test]
fn golden_06_t5_ids() {
    let fixture = Fixture::open();
    let golden: Golden = fixture.json(CASE);
    let tensors = fixture.tensors(CASE);
    let tokenizer = T5Tokenizer::open(&fixture.flux().join("tokenizer_2")).unwrap();
    for case in &golden.prompts {
        let ids = tokenizer.encode_untruncated(&case.prompt).unwrap();
        assert_eq!(ids, case.t5_ids_untruncated, "{}", case.name);
        let ids = tokenizer.encode(&case.prompt).unwrap();
        assert_eq!(ids.len(), golden.t5_max_length);
        assert_eq!(ids, tensors.ids(&format!("{}.t5_ids", case.name)));
    }
}
