//! The backbone of the fixture: layer by layer, and its tokens.

use std::{env, fs, path::PathBuf, sync::Arc};

use safetensors::SafeTensors;
use serde::Deserialize;
use xomni_engine::{
    checkpoint::{Weights, XOmniConfig},
    model::backbone::{Backbone, Stage},
    ops::{Device, TransformerOps, cuda::Precision},
    parallel::{Shard, local_group},
    sampling::SamplingParams,
    schedule::{Mode, OutputSpec, Request},
};

use crate::{backbone, support::*};

#[derive(Deserialize)]
struct Cases {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    name: String,
    input_ids: Vec<u32>,
    generated_ids: Vec<u32>,
    file: String,
}

#[derive(Deserialize)]
struct Guided {
    guidance_scale: f32,
    input_ids: Vec<u32>,
    negative_ids: Vec<u32>,
    generated_ids: Vec<u32>,
}

fn root() -> PathBuf {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/xomni-tiny");
    env::var_os("XOMNI_GOLDEN").map_or_else(|| committed.into(), PathBuf::from)
}

fn json<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    let text = fs::read(root().join("expected").join(name)).expect("fixture");
    serde_json::from_slice(&text).expect("json")
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).expect("tensor");
    let bytes = tensor.data().chunks_exact(4);
    bytes
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

fn weights() -> Weights {
    Weights::open_safetensors(&root().join("x-omni"), "model").expect("weights")
}

fn config() -> xomni_engine::checkpoint::BackboneConfig {
    XOmniConfig::open(&root().join("x-omni"))
        .expect("config")
        .backbone
}

/// The tolerance of the CPU's golden tests in f32; rounding to bf16 costs this much.
const TOLERANCES: [(Precision, f64); 2] = [(Precision::F32, 3e-5), (Precision::Bf16, 1.5e-2)];

#[test]
fn golden_02_backbone_layers() {
    let _gpu = alone();
    let config = config();
    let cases: Cases = json("02_backbone.json");
    for (precision, tolerance) in TOLERANCES {
        for prompt in &cases.prompts {
            let bytes = fs::read(root().join("expected").join(&prompt.file)).expect("fixture");
            let expected = SafeTensors::deserialize(&bytes).expect("safetensors");
            let length = prompt.input_ids.len();
            let ops = Arc::new(gpu(precision));
            let collective = Box::new(local_group(1).remove(0));
            let (shard, mut weights) = (Shard::whole(), weights());
            let mut backbone =
                Backbone::load(ops.clone(), shard, collective, &config, &mut weights, 64)
                    .expect("weights");
            let blocks = length.div_ceil(16);
            let mut kv = backbone.kv_cache(blocks, 16).expect("cache");
            let mut rows = backbone.rows(1, 16).expect("rows");
            let ids: Vec<_> = (0u32..)
                .zip(&prompt.input_ids)
                .map(|(p, &id)| (0, p, id))
                .collect();
            let mut plan = plan(&ids);
            let table: Vec<u32> = (0..blocks as u32).rev().collect();
            plan.admitted = vec![(0, table.clone().into())];
            ops.begin(&plan, &mut rows).expect("step");
            let check = |name: &str, values: &[f32]| {
                let what = format!("{} {name} {precision:?}", prompt.name);
                assert_close(&what, values, &f32s(&expected, name), tolerance);
            };
            let mut observe = |stage, hidden: Vec<f32>| match stage {
                Stage::Embedding => check("embeddings", &hidden[..length * config.hidden]),
                Stage::Layer(index) => check(
                    &format!("layer{index}.out"),
                    &hidden[..length * config.hidden],
                ),
            };
            let mut logits = Vec::new();
            ops.run(&mut rows, false, &mut |rows| {
                backbone.forward(rows, &mut kv, Some(&mut observe))?;
                check(
                    "final_norm",
                    &ops.read(
                        backbone.final_norm(rows, Mode::Image)?,
                        length * config.hidden,
                    )?,
                );
                logits = ops.read(
                    backbone.logits(rows, Mode::Image)?,
                    length * config.image_vocab,
                )?;
                Ok(())
            })
            .expect("step");
            let full = f32s(&expected, "last_logits");
            let possible = &full[config.text_vocab..][..config.image_vocab];
            assert_close(
                "last_logits",
                &logits[(length - 1) * config.image_vocab..],
                possible,
                tolerance,
            );
            for layer in 0..config.layers {
                let (heads, d) = (config.kv_heads, config.head_dim);
                let read = |&block: &u32| ops.read_kv(&kv, layer, block).expect("block");
                let (keys, values): (Vec<_>, Vec<_>) = table.iter().map(read).unzip();
                let gather = |blocks: &[Vec<f32>]| -> Vec<f32> {
                    let positions = (0..heads).flat_map(|h| (0..length).map(move |p| (h, p)));
                    positions
                        .flat_map(|(h, p)| blocks[p / 16][(h * 16 + p % 16) * d..][..d].to_vec())
                        .collect()
                };
                check(&format!("layer{layer}.k"), &gather(&keys));
                check(&format!("layer{layer}.v"), &gather(&values));
            }
        }
    }
}

fn greedy(id: u64, prompt: &[u32], tokens: usize) -> Request {
    Request {
        id,
        priority: 0,
        mode: Mode::Image,
        prompt: prompt.to_vec(),
        negative_prompt: None,
        sampling: SamplingParams::GREEDY,
        seed: 0,
        outputs: vec![OutputSpec {
            image_index: 0,
            forced: vec![],
        }],
        max_tokens: tokens,
        stop_ids: vec![],
        deadline: None,
        log_probs: false,
    }
}

#[test]
fn golden_02_backbone_tokens_with_and_without_guidance() {
    let _gpu = alone();
    let cases: Cases = json("02_backbone.json");
    let guided: Guided = json("02_backbone_cfg.json");
    let mut requests: Vec<_> = (0..)
        .zip(&cases.prompts)
        .map(|(id, prompt)| (0, greedy(id, &prompt.input_ids, prompt.generated_ids.len())))
        .collect();
    let mut wanted: Vec<_> = cases
        .prompts
        .iter()
        .map(|prompt| prompt.generated_ids.clone())
        .collect();
    let mut request = greedy(
        wanted.len() as u64,
        &guided.input_ids,
        guided.generated_ids.len(),
    );
    request.negative_prompt = Some(guided.negative_ids);
    request.sampling.guidance_scale = guided.guidance_scale;
    requests.push((0, request));
    wanted.push(guided.generated_ids);
    for ranks in [1, 2] {
        let limits = backbone::ROOMY;
        let group = backbone::start(
            gpu(Precision::F32),
            &config(),
            weights(),
            ranks,
            limits,
            false,
        );
        let outputs = backbone::run(&group, limits, 2, requests.clone());
        for (id, tokens) in (0..).zip(&wanted) {
            assert_eq!(
                &outputs[&(id, 0)].tokens,
                tokens,
                "request {id} on {ranks} ranks"
            );
        }
    }
}
