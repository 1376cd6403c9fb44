//! The picture decoder: a prompt and tokens to pixels.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, OnceLock},
};

use super::{
    Denoise, WeightsSource,
    latents::{SIDE, noise, unpack},
    spec::{DecodeSpec, Progress},
};
use crate::{
    Error, Result,
    checkpoint::{
        FluxConfig, XOmniConfig,
        flux::{ClipConfig, FlowConfig, T5Config, VaeConfig},
    },
    model::{
        clip::Clip,
        flow::Schedule,
        flux::{BATCH, Conditions, Flux},
        t5::T5,
        vae::{self, FeatureMap, Vae, to_picture},
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
    /// As the models' `load`; [`Error::Unsupported`] where their sizes do not fit each other.
    pub fn open(
        ops: Arc<O>,
        x_omni_dir: &Path,
        flux_dir: &Path,
        config: &XOmniConfig,
        source: WeightsSource,
    ) -> Result<Self> {
        let transformer_dir = x_omni_dir.join(&config.decoder.model_path);
        let clip_dir = flux_dir.join("text_encoder");
        let t5_dir = flux_dir.join("text_encoder_2");
        let vae_dir = flux_dir.join("vae");
        let flux = FluxConfig::open(&transformer_dir, config.encoder.z_channels)?;
        let clip = ClipConfig::open(&clip_dir)?;
        let t5 = T5Config::open(&t5_dir)?;
        let vae = VaeConfig::open(&vae_dir)?;
        check_sizes(config, &flux, &clip, &t5, &vae)?;

        let clip_tokenizer = ClipTokenizer::open(&flux_dir.join("tokenizer"))?;
        let t5_tokenizer = T5Tokenizer::open(&flux_dir.join("tokenizer_2"))?;
        fits(
            "CLIP vocabulary",
            clip_tokenizer.vocab() as usize,
            clip.vocab,
        )?;
        fits("T5 vocabulary", t5_tokenizer.vocab() as usize, t5.vocab)?;

        let stem = "diffusion_pytorch_model";
        let projector = x_omni_dir.join(&config.encoder.projector_path);
        let projector = source.torch(&projector, "projector")?;
        let clip_weights = source.safetensors(&clip_dir, "model", "clip")?;
        let t5_weights = source.safetensors(&t5_dir, "model", "t5")?;
        let flux_weights = source.safetensors(&transformer_dir, stem, "flux")?;
        let vae_weights = source.safetensors(&vae_dir, stem, "vae")?;
        Ok(Self {
            clip_tokenizer,
            t5_tokenizer,
            clip: Clip::load(&*ops, clip_weights, &clip)?,
            t5: T5::load(&*ops, t5_weights, &t5, T5_LENGTH)?,
            vq: VqDecoder::load(&*ops, projector, &config.encoder)?,
            flux: Flux::load(&*ops, flux_weights, &flux)?,
            vae: Vae::load(&*ops, vae_weights, &vae)?,
            flow: FlowConfig::open(&flux_dir.join("scheduler"))?,
            latent_channels: vae.latent_channels,
            steps: config.decoder.num_inference_steps,
            cfg_scale: config.decoder.cfg_scale,
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

fn check_sizes(
    config: &XOmniConfig,
    flux: &FluxConfig,
    clip: &ClipConfig,
    t5: &T5Config,
    vae_config: &VaeConfig,
) -> Result<()> {
    let packed = SIDE * SIDE * vae_config.latent_channels;
    // One SigLIP token a packed latent: anything else would need the grids resampled.
    equal(
        "upscale_factor",
        config.decoder.upscale_factor,
        SIDE * vae::SCALE,
    )?;
    equal("transformer in_channels", flux.in_channels, packed)?;
    equal("transformer out_channels", flux.out_channels, packed)?;
    equal(
        "transformer joint_attention_dim",
        flux.joint_attention_dim,
        t5.d_model,
    )?;
    equal(
        "transformer pooled_projection_dim",
        flux.pooled_projection_dim,
        clip.hidden,
    )?;
    equal(
        "transformer siglip_channels",
        flux.siglip_channels,
        config.encoder.z_channels,
    )
}

fn equal(what: &str, value: usize, expected: usize) -> Result<()> {
    if value == expected {
        return Ok(());
    }
    let reason = format!("must be {expected} to fit the other models");
    Err(Error::Unsupported {
        what: format!("{what} {value}"),
        reason,
    })
}

fn fits(what: &str, tokens: usize, rows: usize) -> Result<()> {
    if tokens <= rows {
        return Ok(());
    }
    let reason = format!("the model has {rows} rows");
    Err(Error::Unsupported {
        what: format!("{what} of {tokens} tokens"),
        reason,
    })
}
