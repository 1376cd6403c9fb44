//! Case 02: the backbone in image mode, layer by layer and token by token, with and without
//! guidance.

use std::sync::Arc;

use serde::Deserialize;
use xomni_engine::{
    model::backbone::{Backbone, Stage},
    ops::{Device, TransformerOps, cpu::Cpu},
    parallel::{Shard, local_group},
    sampling::draw::guide,
    schedule::Mode,
    text::Grid,
};
use xomni_tests::{
    backbone::{Model, ROOMY, greedy_image, prefill},
    golden::{Tensors, Tolerance, assert_close},
};

#[derive(Deserialize)]
struct Cases {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    name: String,
    prompt: String,
    grid_h: u32,
    grid_w: u32,
    input_ids: Vec<u32>,
    generated_ids: Vec<u32>,
    file: String,
}

#[derive(Deserialize)]
struct Guided {
    prompt: String,
    grid_h: u32,
    grid_w: u32,
    guidance_scale: f32,
    input_ids: Vec<u32>,
    negative_ids: Vec<u32>,
    generated_ids: Vec<u32>,
}

fn cases(model: &Model) -> Vec<(Prompt, Tensors)> {
    let cases: Cases = model.fixture.json("02_backbone");
    let tensors = |prompt: &Prompt| {
        model.fixture.tensors(
            prompt
                .file
                .strip_suffix(".safetensors")
                .unwrap_or(&prompt.file),
        )
    };
    cases
        .prompts
        .into_iter()
        .map(|prompt| {
            let t = tensors(&prompt);
            (prompt, t)
        })
        .collect()
}

#[test]
fn golden_02_backbone_layers() {
    let model = Model::open();
    for (prompt, expected) in cases(&model) {
        let grid = Grid::new(prompt.grid_h, prompt.grid_w);
        let ids = model
            .tokenizer
            .image_prompt(&prompt.prompt, grid)
            .expect("prompt");
        assert_eq!(ids, prompt.input_ids, "{}", prompt.name);
        check_layers(&model, &ids, &expected);
    }
}

/// Prefills `ids` in one step and compares everything the fixture knows of it.
fn check_layers(model: &Model, ids: &[u32], expected: &Tensors) {
    const BLOCK: usize = 4;
    let config = &model.config.backbone;
    let (layers, length) = (config.layers, ids.len());
    let ops = Arc::new(Cpu::new());
    let alone = local_group(1).remove(0);
    let mut weights = model.weights();
    let mut backbone = Backbone::load(
        ops.clone(),
        Shard::whole(),
        Box::new(alone),
        config,
        &mut weights,
        length,
    )
    .expect("weights");
    let blocks = length.div_ceil(BLOCK);
    let mut kv = backbone.kv_cache(blocks, BLOCK).expect("cache");
    let table: Vec<u32> = (0..blocks as u32).rev().collect();
    let mask: Vec<u8> = ids
        .iter()
        .map(|&id| u8::from(id as usize >= config.text_vocab))
        .collect();
    assert_eq!(mask, expected.u8("mm_mask"));
    let mut rows = backbone.rows(1, BLOCK).expect("rows");
    ops.begin(&prefill(ids, &table, Mode::Image), &mut rows)
        .expect("step");

    let mut seen = 0;
    let mut observe = |stage, hidden: Vec<f32>| {
        seen += 1;
        let name = match stage {
            Stage::Embedding => "embeddings".to_owned(),
            Stage::Layer(index) => format!("layer{index}.out"),
        };
        expected.assert_close(&name, &hidden, Tolerance::F32);
    };
    backbone
        .forward(&rows, &mut kv, Some(&mut observe))
        .expect("forward");
    assert_eq!(seen, layers + 1);

    for layer in 0..layers {
        let blocks = table
            .iter()
            .map(|&block| ops.read_kv(&kv, layer, block).expect("block"));
        let (keys, values): (Vec<_>, Vec<_>) = blocks.unzip();
        let (heads, d) = (config.kv_heads, config.head_dim);
        // [blocks][kv_heads, BLOCK, d] -> [kv_heads, length, d]
        let gather = |blocks: &[Vec<f32>]| -> Vec<f32> {
            let at = |head: usize, p: usize| ((head * BLOCK) + p % BLOCK) * d;
            let positions = (0..heads).flat_map(|h| (0..length).map(move |p| (h, p)));
            positions
                .flat_map(|(h, p)| blocks[p / BLOCK][at(h, p)..][..d].to_vec())
                .collect()
        };
        expected.assert_close(&format!("layer{layer}.k"), &gather(&keys), Tolerance::F32);
        expected.assert_close(&format!("layer{layer}.v"), &gather(&values), Tolerance::F32);
    }

    let normed = backbone.final_norm(&rows, Mode::Image).expect("norm");
    let normed = ops.read(normed, length * config.hidden).expect("read");
    expected.assert_close("final_norm", &normed, Tolerance::F32);
    let logits = backbone.logits(&rows, Mode::Image).expect("logits");
    let logits = ops.read(logits, length * config.image_vocab).expect("read");
    let range = backbone.vocabulary(Mode::Image);
    let full = expected.f32("last_logits");
    let possible = &full[range.start as usize..range.end as usize];
    let last = &logits[(length - 1) * config.image_vocab..];
    assert_close("last_logits", last, possible, Tolerance::F32);
    let masked = full
        .iter()
        .enumerate()
        .filter(|(id, _)| !range.contains(&(*id as u32)));
    assert!(masked.into_iter().all(|(_, &logit)| logit == f32::MIN));
}

#[test]
fn golden_02_backbone_greedy() {
    let model = Model::open();
    let cases = cases(&model);
    let requests: Vec<_> = (0..)
        .zip(&cases)
        .map(|(id, (prompt, _))| {
            greedy_image(id, prompt.input_ids.clone(), prompt.generated_ids.len())
        })
        .collect();
    let outputs = model.run(1, ROOMY, &requests);
    for (id, (prompt, expected)) in (0..).zip(&cases) {
        let output = &outputs[&(id, 0)];
        assert_eq!(output.tokens, prompt.generated_ids, "{}", prompt.name);
        let logits: Vec<f32> = output
            .logits
            .iter()
            .flat_map(|rows| rows[0].clone())
            .collect();
        expected.assert_close("image_logits", &logits, Tolerance::F32);
        let codes: Vec<u32> = output
            .tokens
            .iter()
            .filter_map(|&id| model.tokenizer.image_code(id))
            .collect();
        assert_eq!(codes, expected.ids("image_tokens"), "{}", prompt.name);
    }
}

#[test]
fn golden_02_backbone_guided() {
    let model = Model::open();
    let guided: Guided = model.fixture.json("02_backbone_cfg");
    let expected = model.fixture.tensors("02_backbone_cfg");
    let grid = Grid::new(guided.grid_h, guided.grid_w);
    let prompt = model
        .tokenizer
        .image_prompt(&guided.prompt, grid)
        .expect("prompt");
    let negative = model.tokenizer.negative_prompt(grid).expect("prompt");
    assert_eq!(
        (&prompt, &negative),
        (&guided.input_ids, &guided.negative_ids)
    );
    let mut request = greedy_image(0, prompt, guided.generated_ids.len());
    request.negative_prompt = Some(negative);
    request.sampling.guidance_scale = guided.guidance_scale;
    let output = model
        .run(1, ROOMY, &[request])
        .remove(&(0, 0))
        .expect("output");

    assert_eq!(output.tokens, guided.generated_ids);
    let column = |row: usize| -> Vec<f32> {
        output
            .logits
            .iter()
            .flat_map(|rows| rows[row].clone())
            .collect()
    };
    expected.assert_close("cond_logits", &column(0), Tolerance::F32);
    expected.assert_close("uncond_logits", &column(1), Tolerance::F32);
    let scores: Vec<f32> = output
        .logits
        .iter()
        .flat_map(|rows| guide(&rows[0], &rows[1], guided.guidance_scale))
        .collect();
    // Guidance multiplies the deviation of the logits by its scale.
    let tolerance = Tolerance {
        max_abs: 1e-3,
        ..Tolerance::F32
    };
    expected.assert_close("scores", &scores, tolerance);
}
