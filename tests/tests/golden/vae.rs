//! Case 09: the VAE decoder, stage by stage.

use xomni_engine::{
    checkpoint::{Weights, flux::VaeConfig},
    model::vae::{FeatureMap, Vae, to_picture},
    ops::{Device, cpu::Cpu},
};
use xomni_tests::{
    golden::{Fixture, Tensors, Tolerance, assert_picture_close},
    layout::{channels_first, channels_last},
};

const CASE: &str = "09_vae";

#[test]
fn golden_09_vae() {
    let (fixture, ops) = (Fixture::open(), Cpu::new());
    let tensors = fixture.tensors(CASE);
    let dir = fixture.flux().join("vae");
    let config = VaeConfig::open(&dir).unwrap();
    let weights = Weights::open_safetensors(&dir, "diffusion_pytorch_model").unwrap();
    let vae = Vae::load(&ops, weights, &config).unwrap();

    let &[_, channels, height, width] = &tensors.shape("latents")[..] else {
        panic!("latents are not [1, channels, height, width]");
    };
    let mut latents = channels_last(&tensors.f32("latents"), channels);
    vae.scale(&mut latents);
    let scaled = channels_first(&latents, channels);
    tensors.assert_close("scaled_latents", &scaled, Tolerance::F32);

    let mut x = vae.conv_in(&ops, &latents, height, width).unwrap();
    close_if_given(&tensors, "conv_in", &ops, &x);
    x = vae.mid_block(&ops, x).unwrap();
    close_if_given(&tensors, "mid_block", &ops, &x);
    for index in 0..config.block_out_channels.len() {
        x = vae.up_block(&ops, index, x).unwrap();
        close_if_given(&tensors, &format!("up_block{index}"), &ops, &x);
    }
    x = vae.out(&ops, x).unwrap();
    close_if_given(&tensors, "pixels", &ops, &x);

    let whole = vae.decode(&ops, &latents, height, width).unwrap();
    let pixels = ops.download(&whole.values).unwrap();
    assert!(pixels == ops.download(&x.values).unwrap());
    let picture = to_picture(&pixels, whole.height, whole.width);
    assert_picture_close("picture", &picture.rgb, &tensors.u8("image_u8"));
}

fn close_if_given(tensors: &Tensors, tensor: &str, ops: &Cpu, x: &FeatureMap<Cpu>) {
    if !tensors.contains(tensor) {
        return;
    }
    let values = ops.download(&x.values).unwrap_or_else(|e| panic!("{e}"));
    let values = channels_first(&values, values.len() / (x.height * x.width));
    tensors.assert_close(tensor, &values, Tolerance::F32);
}
