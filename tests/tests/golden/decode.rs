//! Case 10: a whole decoding, from tokens and given noise to a PNG.

use std::{fs, ops::ControlFlow, sync::Arc};

use serde::Deserialize;
use xomni_engine::{
    Error,
    checkpoint::{XOmniConfig, flux::VaeConfig},
    decode::{
        DecodeSpec, PictureDecoder, Progress, WeightsSource,
        latents::{pack, unpack},
    },
    ops::{Device, cpu::Cpu},
    picture::{png, read},
    text::Grid,
};
use xomni_tests::{
    golden::{Fixture, Tolerance, assert_close, assert_picture_close},
    layout::channels_first,
};

const CASE: &str = "10_decode";

#[derive(Deserialize)]
struct Golden {
    prompt_passed_to_decoder: String,
    grid_h: u32,
    grid_w: u32,
    num_inference_steps: usize,
    true_cfg_scale: f32,
    image_tokens: Vec<u32>,
    png: String,
}

impl Golden {
    fn spec(&self) -> DecodeSpec {
        DecodeSpec {
            prompt: self.prompt_passed_to_decoder.clone(),
            grid: Grid::new(self.grid_h, self.grid_w),
            tokens: self.image_tokens.clone(),
            seed: 1,
            image_index: 0,
            steps: Some(self.num_inference_steps),
        }
    }
}

fn decoder(fixture: &Fixture, source: WeightsSource) -> PictureDecoder<Cpu> {
    let (x_omni, flux, ops) = (fixture.x_omni(), fixture.flux(), Arc::new(Cpu::new()));
    XOmniConfig::open(&x_omni)
        .and_then(|config| PictureDecoder::open(ops, &x_omni, &flux, &config, source))
        .unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn golden_10_decode() {
    let (fixture, ops) = (Fixture::open(), Cpu::new());
    let golden: Golden = fixture.json(CASE);
    let tensors = fixture.tensors(CASE);
    let decoder = decoder(&fixture, WeightsSource::Checkpoint);
    let config = XOmniConfig::open(&fixture.x_omni()).unwrap().decoder;
    assert_eq!(config.cfg_scale, golden.true_cfg_scale);
    let channels = VaeConfig::open(&fixture.flux().join("vae"))
        .unwrap()
        .latent_channels;
    let spec = golden.spec();

    for (prompt, row) in [(spec.prompt.as_str(), 0), ("", 1)] {
        let encoding = decoder.encode_prompt(prompt).unwrap();
        for (tensor, values) in [
            ("encoder_hidden_states", encoding.text),
            ("pooled", encoding.pooled),
        ] {
            let (expected, actual) = (tensors.f32(tensor), ops.download(&values).unwrap());
            let expected = &expected[row * actual.len()..][..actual.len()];
            assert_close(
                &format!("{tensor} {row}"),
                &actual,
                expected,
                Tolerance::F32,
            );
        }
    }

    let close = |tensor: &str, values: &[f32]| {
        tensors.assert_close(tensor, values, Tolerance::DECODE);
    };
    let latents = tensors.f32("latents_step0_input");
    assert_eq!(
        pack(&tensors.f32("noise_unpacked"), spec.grid, channels),
        latents
    );
    let prompt = decoder.encode_prompt(&spec.prompt).unwrap();
    let mut denoise = decoder.start(&spec, &prompt, latents.clone()).unwrap();
    close("sigmas", &denoise.schedule().sigmas);
    close("timesteps", &denoise.schedule().timesteps);
    while let Some(step) = denoise.next_step() {
        denoise.advance().unwrap();
        let (cond, uncond) = denoise.velocities();
        close(&format!("step{step}.noise_cond"), cond);
        close(&format!("step{step}.noise_uncond"), uncond);
        close(&format!("step{step}.noise_guided"), denoise.guided());
        close(&format!("step{step}.latents"), denoise.latents());
    }
    close("final_latents_packed", denoise.latents());
    let unpacked = unpack(denoise.latents(), spec.grid, channels);
    close("final_latents", &channels_first(&unpacked, channels));
    let pixels = decoder.pixels(denoise.latents(), spec.grid).unwrap();
    close(
        "pixels",
        &channels_first(&ops.download(&pixels.values).unwrap(), 3),
    );

    let mut parts = Vec::new();
    let picture = decoder
        .decode_from_latents(&spec, latents, &mut |part| {
            parts.push(part);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(parts.len(), golden.num_inference_steps + 2);
    assert_eq!(
        parts[1],
        Progress::Denoise {
            step: 0,
            of: golden.num_inference_steps
        }
    );
    assert_eq!(parts.last(), Some(&Progress::Vae));
    assert_picture_close("picture", &picture.rgb, &tensors.u8("image_u8"));

    let stored = fs::read(fixture.path("expected").join(&golden.png)).unwrap();
    assert!(read::read(&stored).unwrap().rgb == tensors.u8("image_u8"));
    assert_eq!(
        read::read(&png::encode(&picture).unwrap()).unwrap(),
        picture
    );
}

#[test]
fn equal_specs_give_equal_pictures() {
    let fixture = Fixture::open();
    let golden: Golden = fixture.json(CASE);
    let decoder = decoder(&fixture, WeightsSource::Checkpoint);
    let spec = DecodeSpec {
        steps: Some(2),
        ..golden.spec()
    };
    let decode = |spec: &DecodeSpec| {
        decoder
            .decode(spec, &mut |_| ControlFlow::Continue(()))
            .unwrap()
    };
    let picture = decode(&spec);
    assert_eq!(picture.width, 16 * golden.grid_w as usize);
    assert_eq!(picture.height, 16 * golden.grid_h as usize);
    assert!(decode(&spec) == picture);
    assert!(
        decode(&DecodeSpec {
            seed: 2,
            ..spec.clone()
        }) != picture
    );
    assert!(
        decode(&DecodeSpec {
            image_index: 1,
            ..spec.clone()
        }) != picture
    );
}

#[test]
fn decoding_stops_where_it_is_told() {
    let fixture = Fixture::open();
    let golden: Golden = fixture.json(CASE);
    let decoder = decoder(&fixture, WeightsSource::Checkpoint);
    let mut begun = 0;
    let result = decoder.decode(&golden.spec(), &mut |part| {
        begun += 1;
        match part {
            Progress::Denoise { step: 1, .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(begun, 3, "encode, step 0, step 1");
}

#[test]
fn random_weights_decode_reproducibly() {
    let fixture = Fixture::open();
    let spec = DecodeSpec {
        steps: Some(1),
        ..fixture.json::<Golden>(CASE).spec()
    };
    let picture = |seed| {
        decoder(&fixture, WeightsSource::Random(seed))
            .decode(&spec, &mut |_| ControlFlow::Continue(()))
            .unwrap()
    };
    assert!(picture(3) == picture(3));
    assert!(picture(3) != picture(4));
}
