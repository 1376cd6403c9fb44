//! Case 07: one call of the FLUX transformer.

use serde::Deserialize;
use xomni_engine::{
    checkpoint::{FluxConfig, Weights, XOmniConfig},
    model::flux::{BATCH, Conditions, Flux, FluxRun, rope_tables},
    ops::{Device, cpu::Cpu},
    text::Grid,
};
use xomni_tests::golden::{Fixture, Tolerance};

const CASE: &str = "07_flux_transformer";

#[derive(Deserialize)]
struct Golden {
    timestep_times_1000: Vec<f32>,
    num_img_tokens: usize,
    num_txt_tokens: usize,
}

fn twice(values: &[f32]) -> Vec<f32> {
    values.iter().flat_map(|v| [*v; 2]).collect()
}

#[test]
fn golden_07_flux() {
    let (fixture, ops) = (Fixture::open(), Cpu::new());
    let tensors = fixture.tensors(CASE);
    let golden: Golden = fixture.json(CASE);
    let config = XOmniConfig::open(&fixture.x_omni()).unwrap();
    let dir = fixture.x_omni().join(&config.decoder.model_path);
    let flux = FluxConfig::open(&dir, config.encoder.z_channels).unwrap();
    let weights = Weights::open_safetensors(&dir, "diffusion_pytorch_model").unwrap();
    let flux = Flux::load(&ops, weights, &flux).unwrap();

    let (image, text) = (golden.num_img_tokens, golden.num_txt_tokens);
    let ids = tensors.f32("img_ids");
    let grid = Grid::new(ids[ids.len() - 2] as u32 + 1, ids[ids.len() - 1] as u32 + 1);
    assert_eq!(grid.tokens(), image);
    let (cos, sin) = rope_tables(flux.config().axes_dims_rope, text, grid);
    tensors.assert_close("rope_cos", &twice(&cos), Tolerance::F32);
    tensors.assert_close("rope_sin", &twice(&sin), Tolerance::F32);

    // Both rows have the same latents; the second has no picture tokens.
    let first = |tensor: &str| {
        let values = tensors.f32(tensor);
        values[..values.len() / BATCH].to_vec()
    };
    let conditions = Conditions {
        text: &ops.upload(&tensors.f32("encoder_hidden_states")).unwrap(),
        text_len: text,
        pooled: &ops.upload(&tensors.f32("pooled_projections")).unwrap(),
        siglip: &ops.upload(&first("siglip_tensor")).unwrap(),
        grid,
    };
    let latents = ops.upload(&first("hidden_states")).unwrap();
    let timestep = golden.timestep_times_1000[0];
    let mut run = FluxRun::new(&ops, &flux, &conditions).unwrap();
    let close = |tensor: &str, values: &[f32]| {
        tensors.assert_close(tensor, values, Tolerance::F32);
    };

    run.embed(&latents, timestep).unwrap();
    close("temb", &ops.download(run.conditioning()).unwrap());
    run.double_blocks().unwrap();
    close("double_last.img", &ops.download(run.image()).unwrap());
    let streams = ops.download(run.text()).unwrap();
    let head: Vec<f32> = streams
        .chunks_exact(text * flux.width())
        .flat_map(|stream| &stream[..64 * flux.width()])
        .copied()
        .collect();
    close("double_last.txt_first64", &head);
    run.inject_siglip().unwrap();
    close("after_siglip.img", &ops.download(run.image()).unwrap());
    run.single_blocks().unwrap();
    close("single_last.img", &ops.download(run.image()).unwrap());
    let mut out = ops
        .buffer(BATCH * image * flux.config().out_channels)
        .unwrap();
    run.output(&mut out).unwrap();
    close("output", &ops.download(&out).unwrap());

    // A second call finds nothing left over from the first.
    run.velocity(&latents, timestep, &mut out).unwrap();
    close("output", &ops.download(&out).unwrap());
}
