//! The picture decoder: a prompt and tokens to pixels.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, OnceLock},
};

use super::{
    DecoderSetup, Denoise, WeightsSource,
    latents::{SIDE, noise, unpack},
    setup::DecoderWeights,
    spec::{DecodeSpec, Progress},
};
use crate::{
    Error, Result,
    checkpoint::{XOmniConfig, flux::FlowConfig},
    model::{
        clip::Clip,
        flow::Schedule,
        flux::{BATCH, Conditions, Flux},
        t5::T5,
        vae::{FeatureMap, Vae, to_picture},
        vq::VqDecoder,
    },
    ops::ImageOps,
    picture::Picture,
    text::{
        clip::ClipTokenizer,
        grid::Grid,
        t5::{T5_LENGTH, T5Tokenizer},
    },
};

/// Everything between tokens and pixels.
pub struct PictureDecoder<O: ImageOps> {
    ops: Arc<O>,
    clip_tokenizer: ClipTokenizer,
    t5_tokenizer: T5Tokenizer,
    clip: Clip<O>,
    t5: T5<O>,
    vq: VqDecoder<O>,
    flux: Flux<O>,
    vae: Vae<O>,
    flow: FlowConfig,
    latent_channels: usize,
    steps: usize,
    cfg_scale: f32,
    empty_prompt: OnceLock<PromptEncoding<O>>,
}

/// What both text encoders make of a prompt.
pub struct PromptEncoding<O: ImageOps> {
    /// T5 output `[512, joint_attention_dim]`.
    pub text: O::Buffer,
    /// CLIP vector `[1, pooled_projection_dim]`.
    pub pooled: O::Buffer,
}

impl<O: ImageOps> PictureDecoder<O> {
    /// Loads all models of the two directories.
    ///
    /// # Errors
    /// As [`DecoderSetup::open`], [`DecoderSetup::weights`] and [`PictureDecoder::load`].
    pub fn open(
        ops: Arc<O>,
        x_omni_dir: &Path,
        flux_dir: &Path,
        config: &XOmniConfig,
        source: WeightsSource,
    ) -> Result<Self> {
        let setup = DecoderSetup::open(x_omni_dir, flux_dir, config)?;
        let weights = setup.weights(source)?;
        Self::load(ops, setup, weights)
    }

    /// Loads all models.
    ///
    /// # Errors
    /// As the models' `load`.
    pub fn load(ops: Arc<O>, setup: DecoderSetup, weights: DecoderWeights) -> Result<Self> {
        Ok(Self {
            clip: Clip::load(&*ops, weights.clip, &setup.clip)?,
            t5: T5::load(&*ops, weights.t5, &setup.t5, T5_LENGTH)?,
            vq: VqDecoder::load(&*ops, weights.projector, &setup.encoder)?,
            flux: Flux::load(&*ops, weights.flux, &setup.flux)?,
            vae: Vae::load(&*ops, weights.vae, &setup.vae)?,
            clip_tokenizer: setup.clip_tokenizer,
            t5_tokenizer: setup.t5_tokenizer,
            flow: setup.flow,
            latent_channels: setup.vae.latent_channels,
            steps: setup.steps,
            cfg_scale: setup.cfg_scale,
            empty_prompt: OnceLock::new(),
            ops,
        })
    }

    /// Decodes a picture of `16 H` x `16 W` pixels. `progress` is told each part as it begins and
    /// can stop the decoding there.
    ///
    /// # Errors
    /// As [`DecodeSpec::check`]; [`Error::Cancelled`] if `progress` breaks; otherwise what the
    /// device says.
    pub fn decode(
        &self,
        spec: &DecodeSpec,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Picture> {
        spec.check(self.vq.codes())?;
        let prompt = self.encode_prompt(&spec.prompt)?;
        self.develop(spec, &prompt, progress)
    }

    /// [`PictureDecoder::decode`] with the encoding of the spec's prompt, made before.
    ///
    /// # Errors
    /// As there.
    pub fn develop(
        &self,
        spec: &DecodeSpec,
        prompt: &PromptEncoding<O>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Picture> {
        spec.check(self.vq.codes())?;
        let latents = noise(spec.seed, spec.image_index, spec.grid, self.latent_channels);
        self.develop_from_latents(spec, prompt, latents, progress)
    }

    /// [`PictureDecoder::decode`] from given packed latents `[H·W, 4·latent_channels]`.
    ///
    /// # Errors
    /// As there; [`Error::BadInput`] for another number of latents.
    pub fn decode_from_latents(
        &self,
        spec: &DecodeSpec,
        latents: Vec<f32>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Picture> {
        let prompt = self.encode_prompt(&spec.prompt)?;
        self.develop_from_latents(spec, &prompt, latents, progress)
    }

    fn develop_from_latents(
        &self,
        spec: &DecodeSpec,
        prompt: &PromptEncoding<O>,
        latents: Vec<f32>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Picture> {
        let mut begin = |part| match progress(part) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        };
        begin(Progress::Encode)?;
        let mut denoise = self.start(spec, prompt, latents)?;
        while let Some(step) = denoise.next_step() {
            begin(Progress::Denoise {
                step,
                of: denoise.steps(),
            })?;
            denoise.advance()?;
        }
        begin(Progress::Vae)?;
        let latents = denoise.latents().to_vec();
        drop(denoise);
        let pixels = self.pixels(&latents, spec.grid)?;
        let values = self.ops.download(&pixels.values)?;
        Ok(to_picture(&values, pixels.height, pixels.width))
    }

    /// Encodes the tokens and sets the denoising up.
    ///
    /// # Errors
    /// As [`PictureDecoder::decode_from_latents`].
    pub fn start(
        &self,
        spec: &DecodeSpec,
        prompt: &PromptEncoding<O>,
        latents: Vec<f32>,
    ) -> Result<Denoise<'_, O>> {
        spec.check(self.vq.codes())?;
        let (ops, config, n) = (&*self.ops, self.flux.config(), spec.grid.tokens());
        if latents.len() != n * config.in_channels {
            let limit = format!("{} values", n * config.in_channels);
            return Err(Error::bad_input("latents", limit, latents.len()));
        }
        let empty = self.empty_prompt()?;
        let text_width = config.joint_attention_dim;
        let text = pair(ops, &prompt.text, &empty.text, T5_LENGTH, text_width)?;
        let pooled = pair(
            ops,
            &prompt.pooled,
            &empty.pooled,
            1,
            config.pooled_projection_dim,
        )?;
        let siglip = self.vq.forward(ops, &spec.tokens, spec.grid)?; // [H·W, z_channels]
        let conditions = Conditions {
            text: &text,
            text_len: T5_LENGTH,
            pooled: &pooled,
            siglip: &siglip,
            grid: spec.grid,
        };
        let schedule = Schedule::new(&self.flow, n, self.steps(spec.steps));
        Denoise::new(
            ops,
            &self.flux,
            &conditions,
            schedule,
            self.cfg_scale,
            latents,
        )
    }

    /// Runs both text encoders on a prompt.
    ///
    /// # Errors
    /// As the tokenizers, and what the device says.
    pub fn encode_prompt(&self, prompt: &str) -> Result<PromptEncoding<O>> {
        let text = self
            .t5
            .forward(&self.ops, &self.t5_tokenizer.encode(prompt)?)?;
        let pooled = self
            .clip
            .pooled(&self.ops, &self.clip_tokenizer.encode(prompt)?)?;
        Ok(PromptEncoding { text, pooled })
    }

    /// Denoising steps of a picture that asks for `steps`.
    pub fn steps(&self, steps: Option<usize>) -> usize {
        steps.unwrap_or(self.steps)
    }

    /// The encoding of the empty prompt, computed once.
    fn empty_prompt(&self) -> Result<&PromptEncoding<O>> {
        if let Some(encoding) = self.empty_prompt.get() {
            return Ok(encoding);
        }
        let encoding = self.encode_prompt("")?;
        Ok(self.empty_prompt.get_or_init(|| encoding))
    }

    /// Denoised packed latents `[H·W, 4·latent_channels]` to pixels `[16 H · 16 W, 3]`, nominally
    /// in -1..=1.
    ///
    /// # Errors
    /// What the device says.
    pub fn pixels(&self, latents: &[f32], grid: Grid) -> Result<FeatureMap<O>> {
        let mut latents = unpack(latents, grid, self.latent_channels); // [2 H · 2 W, channels]
        self.vae.scale(&mut latents);
        let (height, width) = (SIDE * grid.height as usize, SIDE * grid.width as usize);
        self.vae.decode(&self.ops, &latents, height, width)
    }
}

/// Two buffers of `rows` rows, one after the other.
fn pair<O: ImageOps>(
    ops: &O,
    first: &O::Buffer,
    second: &O::Buffer,
    rows: usize,
    width: usize,
) -> Result<O::Buffer> {
    let mut both = ops.buffer(BATCH * rows * width)?;
    ops.copy_rows(first, 0, &mut both, 0, rows, width)?;
    ops.copy_rows(second, 0, &mut both, rows, rows, width)?;
    Ok(both)
}
