//! X-Omni-nano against the PyTorch implementation that it was trained in: a greedy picture with its
//! logits, and its decoding from given noise.

use std::{fs, ops::ControlFlow, sync::Arc};

use serde::Deserialize;
use xomni_engine::{
    checkpoint::{XOmniConfig, flux::VaeConfig},
    decode::{DecodeSpec, PictureDecoder, WeightsSource, latents::pack},
    ops::{Device, cpu::Cpu},
    picture::read,
    text::Grid,
};
use xomni_tests::{
    backbone::{Model, ROOMY, greedy_image},
    golden::{Fixture, Tolerance, assert_close, assert_picture_close},
};

/// Of how many steps the logits of one are stored.
const STORED: usize = 8;

#[derive(Deserialize)]
struct Cases {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    prompt: String,
    grid_h: u32,
    grid_w: u32,
    input_ids: Vec<u32>,
    generated_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Decoded {
    prompt_passed_to_decoder: String,
    grid_h: u32,
    grid_w: u32,
    num_inference_steps: usize,
    true_cfg_scale: f32,
    image_tokens: Vec<u32>,
    png: String,
}

#[test]
fn nano_draws_the_tokens_that_it_was_trained_to() {
    let model = Model::of(Fixture::nano());
    let cases: Cases = model.fixture.json("02_backbone");
    let expected = model.fixture.tensors("02_backbone_p0");
    let prompt = &cases.prompts[0];
    let grid = Grid::new(prompt.grid_h, prompt.grid_w);
    let ids = model.tokenizer.image_prompt(&prompt.prompt, grid);
    assert_eq!(ids.expect("prompt"), prompt.input_ids);

    let request = greedy_image(0, prompt.input_ids.clone(), prompt.generated_ids.len());
    let output = model.run(1, ROOMY, &[request]).remove(&(0, 0));
    let output = output.expect("output");
    assert_eq!(output.tokens, prompt.generated_ids);
    let stored = output.logits.iter().step_by(STORED);
    let logits: Vec<f32> = stored.flat_map(|rows| rows[0].clone()).collect();
    // Logits reach 30, ten times those of the random fixture.
    let tolerance = Tolerance {
        max_abs: 3e-3,
        ..Tolerance::F32
    };
    expected.assert_close("image_logits", &logits, tolerance);
}

#[test]
fn nano_decodes_as_it_was_trained_to() {
    let (fixture, ops) = (Fixture::nano(), Arc::new(Cpu::new()));
    let golden: Decoded = fixture.json("10_decode");
    let tensors = fixture.tensors("10_decode");
    let config = XOmniConfig::open(&fixture.x_omni()).expect("config");
    assert_eq!(config.decoder.cfg_scale, golden.true_cfg_scale);
    let vae = VaeConfig::open(&fixture.flux().join("vae")).expect("config");
    let source = WeightsSource::Checkpoint;
    let (x_omni, flux) = (fixture.x_omni(), fixture.flux());
    let decoder = PictureDecoder::open(ops.clone(), &x_omni, &flux, &config, source);
    let decoder = decoder.expect("decoder");
    let spec = DecodeSpec {
        prompt: golden.prompt_passed_to_decoder,
        grid: Grid::new(golden.grid_h, golden.grid_w),
        tokens: golden.image_tokens,
        seed: 1,
        image_index: 0,
        steps: Some(golden.num_inference_steps),
    };

    let prompt = decoder.encode_prompt(&spec.prompt).expect("prompt");
    let pooled = ops.download(&prompt.pooled).expect("download");
    let expected = tensors.f32("pooled");
    assert_close("pooled", &pooled, &expected[..pooled.len()], Tolerance::F32);
    let latents = tensors.f32("latents_step0_input");
    let noise = tensors.f32("noise_unpacked");
    assert_eq!(pack(&noise, spec.grid, vae.latent_channels), latents);

    let close = |tensor: &str, values: &[f32]| {
        tensors.assert_close(tensor, values, Tolerance::DECODE);
    };
    let denoise = decoder.start(&spec, &prompt, latents.clone());
    let mut denoise = denoise.expect("start");
    close("sigmas", &denoise.schedule().sigmas);
    close("timesteps", &denoise.schedule().timesteps);
    while let Some(step) = denoise.next_step() {
        denoise.advance().expect("step");
        close(&format!("step{step}.latents"), denoise.latents());
    }
    close("final_latents_packed", denoise.latents());

    let go_on = &mut |_| ControlFlow::Continue(());
    let picture = decoder.decode_from_latents(&spec, latents, go_on);
    let picture = picture.expect("picture");
    assert_picture_close("picture", &picture.rgb, &tensors.u8("image_u8"));
    let stored = fs::read(fixture.path("expected").join(&golden.png)).expect("PNG");
    let stored = read::read(&stored).expect("picture");
    assert!(stored.rgb == tensors.u8("image_u8"));
}
