//! Case 04: the backbone in text mode, asked about a picture.

use serde::Deserialize;
use xomni_engine::{schedule::Mode, text::Document};
use xomni_tests::{
    backbone::{Model, ROOMY, greedy_image},
    golden::Tolerance,
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
