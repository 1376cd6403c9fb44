//! Case 04: the backbone in text mode, asked about a picture.

use std::sync::Arc;

use serde::Deserialize;
use xomni_engine::{
    model::backbone::{Backbone, Stage},
    ops::{Device, TransformerOps, cpu::Cpu},
    parallel::{Shard, local_group},
    schedule::Mode,
    text::Document,
};
use xomni_tests::{
    backbone::{Model, ROOMY, greedy_image, prefill},
    golden::{Tolerance, assert_close},
};

#[derive(Deserialize)]
struct Case {
    input_ids: Vec<u32>,
    eos_token_id: u32,
    max_new_tokens: usize,
    generated_ids: Vec<u32>,
    stopped_on_eos: bool,
    mmdecode_of_all_but_last: String,
}

#[test]
fn golden_04_understanding_greedy() {
    let model = Model::open();
    let case: Case = model.fixture.json("04_understanding");
    let expected = model.fixture.tensors("04_understanding");
    let mut request = greedy_image(0, case.input_ids.clone(), case.max_new_tokens);
    request.mode = Mode::Text;
    request.stop_ids = vec![case.eos_token_id];
    let output = model
        .run(1, ROOMY, &[request])
        .remove(&(0, 0))
        .expect("output");

    assert_eq!(output.tokens, case.generated_ids);
    assert_eq!(
        output.tokens.last() == Some(&case.eos_token_id),
        case.stopped_on_eos
    );
    let logits: Vec<f32> = output
        .logits
        .iter()
        .flat_map(|rows| rows[0].clone())
        .collect();
    expected.assert_close("step_logits", &logits, Tolerance::F32);
    let answer = &output.tokens[..output.tokens.len() - 1];
    let document = Document::decode(&model.tokenizer, answer, &[]).expect("document");
    assert_eq!(document.texts[0], case.mmdecode_of_all_but_last);
}

#[test]
fn golden_04_understanding_prefill() {
    const BLOCK: usize = 16;
    let model = Model::open();
    let case: Case = model.fixture.json("04_understanding");
    let expected = model.fixture.tensors("04_understanding");
    let config = &model.config.backbone;
    let (ids, length) = (&case.input_ids, case.input_ids.len());
    let ops = Arc::new(Cpu::new());
    let alone = Box::new(local_group(1).remove(0));
    let mut weights = model.weights();
    let mut backbone = Backbone::load(
        ops.clone(),
        Shard::whole(),
        alone,
        config,
        &mut weights,
        length,
    )
    .expect("weights");
    let blocks = length.div_ceil(BLOCK);
    let mut kv = backbone.kv_cache(blocks, BLOCK).expect("cache");
    let table: Vec<u32> = (0..blocks as u32).collect();
    let mask: Vec<u8> = ids
        .iter()
        .map(|&id| u8::from(id as usize >= config.text_vocab))
        .collect();
    assert_eq!(mask, expected.u8("mm_mask"));
    let mut rows = backbone.rows(1, BLOCK).expect("rows");
    ops.begin(&prefill(ids, &table, Mode::Text), &mut rows)
        .expect("step");

    let mut last = Vec::new();
    let mut observe = |stage, hidden: Vec<f32>| {
        if let Stage::Layer(_) = stage {
            last.extend_from_slice(&hidden[(length - 1) * config.hidden..]);
        }
    };
    backbone
        .forward(&rows, &mut kv, Some(&mut observe))
        .expect("forward");
    expected.assert_close("last_hidden_all_layers", &last, Tolerance::F32);
    let normed = backbone.final_norm(&rows, Mode::Text).expect("norm");
    let normed = ops.read(normed, length * config.hidden).expect("read");
    expected.assert_close("final_norm", &normed, Tolerance::F32);
    let logits = backbone.logits(&rows, Mode::Text).expect("logits");
    let logits = ops.read(logits, length * config.text_vocab).expect("read");
    let full = expected.f32("last_logits");
    assert_close(
        "last_logits",
        &logits[(length - 1) * config.text_vocab..],
        &full[..config.text_vocab],
        Tolerance::F32,
    );
    assert!(
        full[config.text_vocab..]
            .iter()
            .all(|&logit| logit == f32::MIN)
    );
}
