use serde::Deserialize;
use xomni_engine::{
    checkpoint::{
        Weights,
        flux::{ClipConfig, T5Config},
    },
    model::{
        clip::{Clip, pool_position},
        t5::T5,
    },
    ops::{Device, cpu::Cpu},
    text::{ClipTokenizer, T5Tokenizer},
};
use xomni_tests::golden::{Fixture, Tolerance};

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
    clip_pool_position: usize,
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

#[test]
fn golden_06_clip_hidden() {
    let (fixture, ops) = (Fixture::open(), Cpu::new());
    let tensors = fixture.tensors(CASE);
    let dir = fixture.flux().join("text_encoder");
    let config = ClipConfig::open(&dir).unwrap();
    let weights = Weights::open_safetensors(&dir, "model").unwrap();
    let clip = Clip::load(&ops, weights, &config).unwrap();
    for Prompt {
        name,
        clip_pool_position,
        ..
    } in fixture.json::<Golden>(CASE).prompts
    {
        let ids = tensors.ids(&format!("{name}.clip_ids"));
        assert_eq!(
            pool_position(&ids, config.eos_token_id),
            clip_pool_position,
            "{name}"
        );
        let hidden = ops.download(&clip.hidden(&ops, &ids).unwrap()).unwrap();
        tensors.assert_close(&format!("{name}.clip_last_hidden"), &hidden, Tolerance::F32);
        let pooled = ops.download(&clip.pooled(&ops, &ids).unwrap()).unwrap();
        tensors.assert_close(&format!("{name}.clip_pooled"), &pooled, Tolerance::F32);
    }
}

#[test]
fn golden_06_t5_hidden() {
    let (fixture, ops) = (Fixture::open(), Cpu::new());
    let tensors = fixture.tensors(CASE);
    let golden: Golden = fixture.json(CASE);
    let dir = fixture.flux().join("text_encoder_2");
    let config = T5Config::open(&dir).unwrap();
    let weights = Weights::open_safetensors(&dir, "model").unwrap();
    let t5 = T5::load(&ops, weights, &config, golden.t5_max_length).unwrap();
    for Prompt { name, .. } in golden.prompts {
        let ids = tensors.ids(&format!("{name}.t5_ids"));
        let hidden = ops.download(&t5.forward(&ops, &ids).unwrap()).unwrap();
        tensors.assert_close(&format!("{name}.t5_hidden"), &hidden, Tolerance::F32);
    }
}
