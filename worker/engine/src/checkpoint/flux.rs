//! Configuration files of the FLUX directory and of the FLUX-with-SigLIP transformer.

use std::path::Path;

use serde_json::Value;

use super::{
    config::limit,
    fields::{self, Fields},
};
#[cfg(doc)]
use crate::Error;
use crate::Result;

/// The FLUX transformer with SigLIP input.
#[derive(Debug, Clone, PartialEq)]
pub struct FluxConfig {
    /// Attention heads.
    pub heads: usize,
    /// Channels a head; the inner width D is `heads * head_dim`.
    pub head_dim: usize,
    /// Double-stream blocks.
    pub double_blocks: usize,
    /// Single-stream blocks.
    pub single_blocks: usize,
    /// Channels of a packed latent.
    pub in_channels: usize,
    /// Channels of the predicted velocity.
    pub out_channels: usize,
    /// Width of the T5 sequence.
    pub joint_attention_dim: usize,
    /// Width of the CLIP pooled vector.
    pub pooled_projection_dim: usize,
    /// Whether the distilled guidance embedding exists.
    pub guidance_embeds: bool,
    /// Rotary channels per axis; sums to `head_dim`.
    pub axes_dims_rope: [usize; 3],
    /// Width of the SigLIP sequence (`z_channels` of the image tokenizer).
    pub siglip_channels: usize,
}

/// Flow-matching schedule with dynamic shifting.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowConfig {
    /// Scale of a timestep: 1000.
    pub num_train_timesteps: f64,
    /// Sequence length at which `base_shift` holds.
    pub base_image_seq_len: f64,
    /// Shift at the base length.
    pub base_shift: f64,
    /// Sequence length at which `max_shift` holds.
    pub max_image_seq_len: f64,
    /// Shift at the maximal length; extrapolated beyond.
    pub max_shift: f64,
}

/// CLIP text model.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Hidden width.
    pub hidden: usize,
    /// MLP width.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Positions: 77.
    pub positions: usize,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f32,
    /// Embedding rows.
    pub vocab: usize,
    /// End token; the legacy value 2 means "the largest id of the sequence".
    pub eos_token_id: u32,
}

/// T5 encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    /// Model width.
    pub d_model: usize,
    /// Channels a head.
    pub d_kv: usize,
    /// Attention heads.
    pub heads: usize,
    /// MLP width.
    pub d_ff: usize,
    /// Layers.
    pub layers: usize,
    /// Relative position buckets: 32.
    pub buckets: usize,
    /// Distance of the last bucket: 128.
    pub max_distance: usize,
    /// Epsilon of every RMS norm.
    pub layer_norm_eps: f32,
    /// Embedding rows; may exceed the tokenizer's vocabulary.
    pub vocab: usize,
}

/// VAE decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of the four resolutions, finest first.
    pub block_out_channels: [usize; 4],
    /// Residual blocks a resolution, less one.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Latent channels: 16.
    pub latent_channels: usize,
    /// Latents are divided by this first …
    pub scaling_factor: f32,
    /// … and shifted by this then.
    pub shift_factor: f32,
}

/// Channels of a packed latent: 16 channels of 2x2 pixels.
const PACKED_CHANNELS: usize = 64;
/// Channels of a latent pixel.
const LATENT_CHANNELS: usize = 16;
/// Positions of the CLIP text model.
const CLIP_POSITIONS: usize = 77;

/// Reads `file` and hands its fields to `build`.
fn read<T>(file: &Path, build: impl FnOnce(&Fields<'_>) -> Result<T>) -> Result<T> {
    let map = fields::parse_object(&fields::read(file)?, file)?;
    build(&Fields::new(&map, file))
}

/// Refuses `value`, of field `name`, unless `divisor`, the value of field `by`, divides it.
fn divisible(
    root: &Fields<'_>,
    (name, value): (&str, usize),
    (by, divisor): (&str, usize),
) -> Result<()> {
    if value % divisor == 0 {
        return Ok(());
    }
    Err(root.refuse(name, format!("a multiple of {by} ({divisor})"), value))
}

impl FluxConfig {
    /// Reads `config.json` in the transformer's `folder`. `siglip_channels` is the width of the
    /// SigLIP features, which the X-Omni configuration decides.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Checkpoint`] naming the first field that
    /// is missing or outside of what inference supports.
    pub fn open(folder: &Path, siglip_channels: usize) -> Result<Self> {
        read(&folder.join("config.json"), |root| {
            let heads = root.size("num_attention_heads", limit::HEADS)?;
            let head_dim = root.size("attention_head_dim", limit::HEAD_DIM)?;
            let inner = heads * head_dim;
            if !limit::WIDTH.contains(&inner) {
                let rule = format!("at most {} over all heads", limit::WIDTH.end());
                return Err(root.refuse("attention_head_dim", rule, inner));
            }
            root.size_or("patch_size", 1..=1, 1)?;
            let in_channels = root.size("in_channels", PACKED_CHANNELS..=PACKED_CHANNELS)?;
            let out_channels = match root.get("out_channels") {
                None | Some(Value::Null) => in_channels,
                Some(_) => root.size("out_channels", in_channels..=in_channels)?,
            };
            Ok(Self {
                heads,
                head_dim,
                double_blocks: root.size("num_layers", limit::LAYERS)?,
                single_blocks: root.size("num_single_layers", limit::LAYERS)?,
                in_channels,
                out_channels,
                joint_attention_dim: root.size("joint_attention_dim", limit::WIDTH)?,
                pooled_projection_dim: root.size("pooled_projection_dim", limit::WIDTH)?,
                guidance_embeds: root.flag_or("guidance_embeds", false)?,
                axes_dims_rope: axes(root, head_dim)?,
                siglip_channels,
            })
        })
    }
}

fn axes(root: &Fields<'_>, head_dim: usize) -> Result<[usize; 3]> {
    const NAME: &str = "axes_dims_rope";
    let axes: [usize; 3] = root.sizes(NAME, 2..=head_dim)?;
    if axes.iter().sum::<usize>() == head_dim && axes.iter().all(|axis| axis % 2 == 0) {
        return Ok(axes);
    }
    let rule = format!("even numbers that sum to attention_head_dim ({head_dim})");
    Err(root.refuse(NAME, rule, format!("{axes:?}")))
}

impl FlowConfig {
    /// Reads `scheduler_config.json` in `folder`.
    ///
    /// # Errors
    /// As [`FluxConfig::open`].
    pub fn open(folder: &Path) -> Result<Self> {
        read(&folder.join("scheduler_config.json"), |root| {
            for name in [
                "invert_sigmas",
                "stochastic_sampling",
                "use_beta_sigmas",
                "use_exponential_sigmas",
                "use_karras_sigmas",
            ] {
                root.only_flag(name, false, false)?;
            }
            root.only_flag("use_dynamic_shifting", true, false)?;
            root.only_null("shift_terminal")?;
            root.choice_or_first("time_shift_type", &["exponential"])?;
            let base_image_seq_len = root.number("base_image_seq_len", 1.0..=1e9)?;
            let max_image_seq_len = root.number("max_image_seq_len", 1.0..=1e9)?;
            if max_image_seq_len <= base_image_seq_len {
                let rule = format!("greater than base_image_seq_len ({base_image_seq_len})");
                return Err(root.refuse("max_image_seq_len", rule, max_image_seq_len));
            }
            Ok(Self {
                num_train_timesteps: root.number("num_train_timesteps", 1.0..=1e6)?,
                base_image_seq_len,
                base_shift: root.number("base_shift", -100.0..=100.0)?,
                max_image_seq_len,
                max_shift: root.number("max_shift", -100.0..=100.0)?,
            })
        })
    }
}

impl ClipConfig {
    /// Reads `config.json` in the text encoder's `folder`.
    ///
    /// # Errors
    /// As [`FluxConfig::open`].
    pub fn open(folder: &Path) -> Result<Self> {
        read(&folder.join("config.json"), |root| {
            root.choice_or_first("hidden_act", &["quick_gelu"])?;
            let hidden = root.size("hidden_size", limit::WIDTH)?;
            let heads = root.size("num_attention_heads", limit::HEADS)?;
            divisible(
                root,
                ("hidden_size", hidden),
                ("num_attention_heads", heads),
            )?;
            let eos = root.size("eos_token_id", 0..=u32::MAX as usize)?;
            Ok(Self {
                hidden,
                intermediate: root.size("intermediate_size", limit::WIDTH)?,
                layers: root.size("num_hidden_layers", limit::LAYERS)?,
                heads,
                positions: root.size("max_position_embeddings", CLIP_POSITIONS..=CLIP_POSITIONS)?,
                layer_norm_eps: root.number("layer_norm_eps", limit::EPSILON)? as f32,
                vocab: root.size("vocab_size", limit::VOCAB)?,
                eos_token_id: eos as u32,
            })
        })
    }
}

impl T5Config {
    /// Reads `config.json` in the text encoder's `folder`.
    ///
    /// # Errors
    /// As [`FluxConfig::open`].
    pub fn open(folder: &Path) -> Result<Self> {
        read(&folder.join("config.json"), |root| {
            root.text("feed_forward_proj")?;
            root.choice_or_first("feed_forward_proj", &["gated-gelu"])?;
            let buckets = root.size_or("relative_attention_num_buckets", 4..=1 << 16, 32)?;
            divisible(
                root,
                ("relative_attention_num_buckets", buckets),
                ("exact and logarithmic buckets of both directions", 4),
            )?;
            // Distances from buckets / 4 on share the logarithmic half of the buckets.
            let distances = buckets / 4 + 1..=1 << 24;
            Ok(Self {
                d_model: root.size("d_model", limit::WIDTH)?,
                d_kv: root.size("d_kv", 1..=*limit::HEAD_DIM.end())?,
                heads: root.size("num_heads", limit::HEADS)?,
                d_ff: root.size("d_ff", limit::WIDTH)?,
                layers: root.size("num_layers", limit::LAYERS)?,
                buckets,
                max_distance: root.size_or("relative_attention_max_distance", distances, 128)?,
                layer_norm_eps: root.number("layer_norm_epsilon", limit::EPSILON)? as f32,
                vocab: root.size("vocab_size", limit::VOCAB)?,
            })
        })
    }
}

impl VaeConfig {
    /// Reads `config.json` in the VAE's `folder`.
    ///
    /// # Errors
    /// As [`FluxConfig::open`].
    pub fn open(folder: &Path) -> Result<Self> {
        read(&folder.join("config.json"), |root| {
            root.only_flag("use_quant_conv", false, true)?;
            root.only_flag("use_post_quant_conv", false, true)?;
            root.only_flag("mid_block_add_attention", true, true)?;
            root.choice_or_first("act_fn", &["silu"])?;
            root.only_null("latents_mean")?;
            root.only_null("latents_std")?;
            root.size_or("out_channels", 3..=3, 3)?;
            let norm_num_groups = root.size_or("norm_num_groups", limit::WIDTH, 32)?;
            let block_out_channels = root.sizes("block_out_channels", limit::WIDTH)?;
            for channels in block_out_channels {
                divisible(
                    root,
                    ("block_out_channels", channels),
                    ("norm_num_groups", norm_num_groups),
                )?;
            }
            Ok(Self {
                block_out_channels,
                layers_per_block: root.size("layers_per_block", 1..=64)?,
                norm_num_groups,
                latent_channels: root.size("latent_channels", LATENT_CHANNELS..=LATENT_CHANNELS)?,
                scaling_factor: root.number("scaling_factor", 1e-6..=1e6)? as f32,
                shift_factor: root.number("shift_factor", -1e6..=1e6)? as f32,
            })
        })
    }
}

#[cfg(test)]
mod tests;
