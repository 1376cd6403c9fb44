//! Case 05: pictures to tokens, and tokens to the decoder's conditioning.

use std::{cell::Cell, fs, path::Path, sync::Arc};

use serde::Deserialize;
use xomni_engine::{
    Error,
    checkpoint::{Weights, XOmniConfig},
    decode::{PictureEncoder, WeightsSource},
    model::vq::VqDecoder,
    ops::{Device, ImageOps, cpu::Cpu},
    picture::preprocess::{self, Pixels},
    text::Grid,
};
use xomni_tests::{
    golden::{Fixture, Tolerance},
    layout::channels_first,
};

const CASE: &str = "05_image_tokenizer";

#[derive(Deserialize)]
struct Golden {
    pictures: Vec<Case>,
    vq_decode: VqDecode,
}

#[derive(Deserialize)]
struct Case {
    file: String,
    accepted: bool,
    width: usize,
    height: usize,
    #[serde(default)]
    resized_width: usize,
    #[serde(default)]
    resized_height: usize,
    #[serde(default)]
    grid_h: u32,
    #[serde(default)]
    grid_w: u32,
    #[serde(default)]
    tokens: Vec<u32>,
}

impl Case {
    /// The file's name without folder and ending, which begins its tensors' names.
    fn name(&self) -> &str {
        let stem = Path::new(&self.file).file_stem();
        stem.and_then(|stem| stem.to_str()).unwrap_or(&self.file)
    }
}

#[derive(Deserialize)]
struct VqDecode {
    grid_h: u32,
    grid_w: u32,
    tokens: Vec<u32>,
}

fn encoder(fixture: &Fixture, source: WeightsSource) -> PictureEncoder<Cpu> {
    let (x_omni, ops) = (fixture.x_omni(), Arc::new(Cpu::new()));
    XOmniConfig::open(&x_omni)
        .and_then(|config| PictureEncoder::open(ops, &x_omni, &config, source))
        .unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn golden_05_preprocess() {
    let fixture = Fixture::open();
    let config = XOmniConfig::open(&fixture.x_omni()).unwrap().transform;
    let tensors = fixture.tensors(CASE);
    for case in fixture.json::<Golden>(CASE).pictures {
        let name = case.name();
        let bytes = fs::read(fixture.path(&case.file)).unwrap();
        if !case.accepted {
            let error = preprocess::load(&bytes, &config).unwrap_err();
            assert!(matches!(error, Error::BadInput { .. }), "{name}: {error}");
            let size = format!("{} x {}", case.width, case.height);
            assert!(error.to_string().contains(&size), "{name}: {error}");
            continue;
        }
        let picture = preprocess::load(&bytes, &config).unwrap();
        assert_eq!(picture.width, case.resized_width, "{name}");
        assert_eq!(picture.height, case.resized_height, "{name}");
        let expected = tensors.u8(&format!("{name}.resized_u8"));
        assert!(picture.rgb == expected, "{name}: resized pixels differ");
        let pixels = Pixels::from(&picture).values;
        tensors.assert_close(&format!("{name}.pixels"), &pixels, Tolerance::F32);
    }
}

#[test]
fn golden_05_encode() {
    let fixture = Fixture::open();
    let encoder = encoder(&fixture, WeightsSource::Checkpoint);
    let tensors = fixture.tensors(CASE);
    for case in fixture.json::<Golden>(CASE).pictures {
        let bytes = fs::read(fixture.path(&case.file)).unwrap();
        let result = encoder.encode(&bytes);
        if !case.accepted {
            assert!(
                matches!(result, Err(Error::BadInput { .. })),
                "{}",
                case.file
            );
            continue;
        }
        let expected = Grid::new(case.grid_h, case.grid_w);
        let (grid, tokens) = result.unwrap();
        assert_eq!(grid, expected, "{}", case.file);
        assert_eq!(tokens, case.tokens, "{}", case.file);
        assert_eq!(tokens, tensors.ids(&format!("{}.tokens", case.name())));
    }
}

#[test]
fn golden_05_stages() {
    let (fixture, ops) = (Fixture::open(), Cpu::new());
    let encoder = encoder(&fixture, WeightsSource::Checkpoint);
    let config = XOmniConfig::open(&fixture.x_omni()).unwrap().transform;
    let tensors = fixture.tensors(CASE);
    let mut all = 0;
    for case in fixture
        .json::<Golden>(CASE)
        .pictures
        .iter()
        .filter(|case| case.accepted)
    {
        let compared = Cell::new(0);
        let close = |stage: &str, values: &[f32]| {
            let tensor = format!("{}.{stage}", case.name());
            // The fixture holds the inner stages of one picture only.
            if tensors.contains(&tensor) {
                tensors.assert_close(&tensor, values, Tolerance::F32);
                compared.set(compared.get() + 1);
            }
        };
        let bytes = fs::read(fixture.path(&case.file)).unwrap();
        let pixels = Pixels::from(&preprocess::load(&bytes, &config).unwrap());
        let (vit, grid) = (encoder.siglip(), Grid::new(case.grid_h, case.grid_w));

        let mut x = vit.patch_embed(&ops, &pixels).unwrap();
        close("patch_embed", &ops.download(&x).unwrap());
        close("pos_embed", &vit.position_table(grid));
        ops.add(&mut x, &ops.upload(&vit.position_table(grid)).unwrap())
            .unwrap();
        for index in 0..vit.depth() {
            vit.block(&ops, index, &mut x, grid.tokens()).unwrap();
            close(&format!("block{index}"), &ops.download(&x).unwrap());
        }

        let features = vit.forward(&ops, &pixels).unwrap();
        close("features", &ops.download(&features).unwrap());
        let projected = encoder
            .vq()
            .project(&ops, &features, grid.tokens())
            .unwrap();
        close("quant_conv", &ops.download(&projected).unwrap());
        all += compared.get();
    }
    assert!(all > 0, "no stage was compared");
}

#[test]
fn golden_05_vq_decode() {
    let (fixture, ops) = (Fixture::open(), Cpu::new());
    let tensors = fixture.tensors(CASE);
    let golden: Golden = fixture.json(CASE);
    let config = XOmniConfig::open(&fixture.x_omni()).unwrap().encoder;
    let weights = Weights::open_torch(&fixture.x_omni().join(&config.projector_path)).unwrap();
    let vq = VqDecoder::load(&ops, weights, &config).unwrap();

    let VqDecode {
        grid_h,
        grid_w,
        tokens,
    } = golden.vq_decode;
    let grid = Grid::new(grid_h, grid_w);
    assert_eq!(tokens, tensors.ids("vq.tokens"));
    let close = |tensor: &str, values: &[f32], channels| {
        tensors.assert_close(tensor, &channels_first(values, channels), Tolerance::F32);
    };
    let rows = vq.rows(&tokens).unwrap();
    close("vq.codebook_rows", &rows, config.codebook_dim);
    let mut x = vq.post_quant_conv(&ops, &rows, grid).unwrap();
    close(
        "vq.post_quant_conv",
        &ops.download(&x).unwrap(),
        config.z_channels,
    );
    for index in 0..2 {
        vq.residual(&ops, index, &mut x, grid).unwrap();
        let tensor = format!("vq.post_conv{index}");
        close(&tensor, &ops.download(&x).unwrap(), config.z_channels);
    }
    let sequence = ops
        .download(&vq.forward(&ops, &tokens, grid).unwrap())
        .unwrap();
    close("vq.latents", &sequence, config.z_channels);
    tensors.assert_close("vq.sequence", &sequence, Tolerance::F32);

    let outside = vq.rows(&[config.codebook_size as u32]);
    assert!(matches!(outside, Err(Error::BadInput { .. })));
}

#[test]
fn random_weights_encode_into_the_codebook() {
    let fixture = Fixture::open();
    let config = XOmniConfig::open(&fixture.x_omni()).unwrap();
    let encoder = encoder(&fixture, WeightsSource::Random(5));
    let accepted = fixture
        .json::<Golden>(CASE)
        .pictures
        .into_iter()
        .find(|case| case.accepted);
    let bytes = fs::read(fixture.path(&accepted.unwrap().file)).unwrap();
    let (grid, tokens) = encoder.encode(&bytes).unwrap();
    assert_eq!(tokens.len(), grid.tokens());
    assert!(
        tokens
            .iter()
            .all(|code| (*code as usize) < config.encoder.codebook_size)
    );
}
