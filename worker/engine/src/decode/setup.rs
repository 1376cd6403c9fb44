//! What a picture decoder reads before its weights: configurations and tokenizers.

use std::path::{Path, PathBuf};

use super::{WeightsSource, latents::SIDE};
use crate::{
    Error, Result,
    checkpoint::{
        FluxConfig, Weights, XOmniConfig,
        config::EncoderConfig,
        flux::{ClipConfig, FlowConfig, T5Config, VaeConfig},
    },
    model::vae,
    text::{clip::ClipTokenizer, t5::T5Tokenizer},
};

/// Configurations and tokenizers of both directories, which fit each other.
#[derive(Debug)]
pub struct DecoderSetup {
    projector_file: PathBuf,
    transformer_dir: PathBuf,
    clip_dir: PathBuf,
    t5_dir: PathBuf,
    vae_dir: PathBuf,
    pub(super) encoder: EncoderConfig,
    pub(super) flux: FluxConfig,
    pub(super) clip: ClipConfig,
    pub(super) t5: T5Config,
    pub(super) vae: VaeConfig,
    pub(super) flow: FlowConfig,
    pub(super) clip_tokenizer: ClipTokenizer,
    pub(super) t5_tokenizer: T5Tokenizer,
    pub(super) steps: usize,
    pub(super) cfg_scale: f32,
}

/// The weights of a decoder's models, none of which is loaded.
#[derive(Debug)]
pub struct DecoderWeights {
    pub(super) projector: Weights,
    pub(super) clip: Weights,
    pub(super) t5: Weights,
    pub(super) flux: Weights,
    pub(super) vae: Weights,
}

impl DecoderSetup {
    /// Reads everything but weights.
    ///
    /// # Errors
    /// As the configurations' and tokenizers' `open`; [`Error::Unsupported`] where sizes do not
    /// fit each other.
    pub fn open(x_omni_dir: &Path, flux_dir: &Path, config: &XOmniConfig) -> Result<Self> {
        let transformer_dir = x_omni_dir.join(&config.decoder.model_path);
        let clip_dir = flux_dir.join("text_encoder");
        let t5_dir = flux_dir.join("text_encoder_2");
        let vae_dir = flux_dir.join("vae");
        let setup = Self {
            projector_file: x_omni_dir.join(&config.encoder.projector_path),
            encoder: config.encoder.clone(),
            flux: FluxConfig::open(&transformer_dir, config.encoder.z_channels)?,
            clip: ClipConfig::open(&clip_dir)?,
            t5: T5Config::open(&t5_dir)?,
            vae: VaeConfig::open(&vae_dir)?,
            flow: FlowConfig::open(&flux_dir.join("scheduler"))?,
            clip_tokenizer: ClipTokenizer::open(&flux_dir.join("tokenizer"))?,
            t5_tokenizer: T5Tokenizer::open(&flux_dir.join("tokenizer_2"))?,
            steps: config.decoder.num_inference_steps,
            cfg_scale: config.decoder.cfg_scale,
            transformer_dir,
            clip_dir,
            t5_dir,
            vae_dir,
        };
        check_sizes(config, &setup.flux, &setup.clip, &setup.t5, &setup.vae)?;
        let clip_tokens = setup.clip_tokenizer.vocab() as usize;
        fits("CLIP vocabulary", clip_tokens, setup.clip.vocab)?;
        let t5_tokens = setup.t5_tokenizer.vocab() as usize;
        fits("T5 vocabulary", t5_tokens, setup.t5.vocab)?;
        Ok(setup)
    }

    /// Opens the weight files: their headers are read, their values are not.
    ///
    /// # Errors
    /// As [`Weights::open_safetensors`] and [`Weights::open_torch`].
    pub fn weights(&self, source: WeightsSource) -> Result<DecoderWeights> {
        let stem = "diffusion_pytorch_model";
        Ok(DecoderWeights {
            projector: source.torch(&self.projector_file, "projector")?,
            clip: source.safetensors(&self.clip_dir, "model", "clip")?,
            t5: source.safetensors(&self.t5_dir, "model", "t5")?,
            flux: source.safetensors(&self.transformer_dir, stem, "flux")?,
            vae: source.safetensors(&self.vae_dir, stem, "vae")?,
        })
    }
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
