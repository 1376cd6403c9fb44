//! `config.json` of an X-Omni directory.

use std::path::Path;

use serde_json::Value;

use super::fields::{self, Fields};
#[cfg(doc)]
use crate::Error;
use crate::Result;

/// Sizes and constants of the backbone transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct BackboneConfig {
    /// Text vocabulary V; ids at or above it are multimodal.
    pub text_vocab: usize,
    /// Multimodal vocabulary M; its ids follow the text ids.
    pub mm_vocab: usize,
    /// Image codes K, the first entries of the multimodal vocabulary.
    pub image_vocab: usize,
    /// Hidden width C.
    pub hidden: usize,
    /// Width of the gated MLP.
    pub intermediate: usize,
    /// All layers, adapter and head layers included.
    pub layers: usize,
    /// The first layers, which change multimodal positions only.
    pub adapter_layers: usize,
    /// The last layers, which change multimodal positions only.
    pub head_layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Channels a head.
    pub head_dim: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Key j is visible to query p only if `p - window < j <= p`; `None`: all of the past.
    pub sliding_window: Option<usize>,
    /// Longest sequence, prompt and image together.
    pub max_positions: usize,
}

/// How a picture is sized before it is tokenised.
#[derive(Debug, Clone, PartialEq)]
pub struct TransformConfig {
    /// Pictures with a shorter short side are enlarged to it, in pixels.
    pub short_size: usize,
    /// Pictures with a longer long side are reduced to it, in pixels.
    pub long_size: usize,
    /// Pixels per token side.
    pub patch_size: usize,
    /// Whether the next two limits apply.
    pub filtering: bool,
    /// Smallest accepted short side, in pixels.
    pub min_short_size: usize,
    /// Largest accepted ratio of the sides.
    pub max_aspect_ratio: f64,
}

/// The image tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// SigLIP ViT weights, relative to the X-Omni directory.
    pub siglip_path: String,
    /// VQ projector weights, relative to the X-Omni directory.
    pub projector_path: String,
    /// Attention heads of the ViT (fixed by its name, not visible in its tensors).
    pub heads: usize,
    /// Width of the ViT.
    pub z_channels: usize,
    /// Codes in the codebook; equals [`BackboneConfig::image_vocab`].
    pub codebook_size: usize,
    /// Channels of a code.
    pub codebook_dim: usize,
}

/// The diffusion decoder, as the X-Omni directory configures it.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Folder of the FLUX transformer, relative to the X-Omni directory.
    pub model_path: String,
    /// Default number of denoising steps.
    pub num_inference_steps: usize,
    /// Guidance of the decoder; greater than 1.
    pub cfg_scale: f32,
    /// Pixels per token side.
    pub upscale_factor: usize,
}

/// Everything `config.json` says that inference uses.
#[derive(Debug, Clone, PartialEq)]
pub struct XOmniConfig {
    /// The transformer.
    pub backbone: BackboneConfig,
    /// Token strings: start of image, end of image, image marker.
    pub mm_special_tokens: [String; 3],
    /// Ids that end a text answer where `generation_config.json` names none; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// Sizing of input pictures.
    pub transform: TransformConfig,
    /// The image tokenizer.
    pub encoder: EncoderConfig,
    /// The diffusion decoder.
    pub decoder: DecoderConfig,
}

/// Bounds on sizes; no product of two of them, nor their byte count, overflows 64 bits.
pub(super) mod limit {
    use std::ops::RangeInclusive;

    pub const VOCAB: RangeInclusive<usize> = 1..=1 << 24;
    pub const WIDTH: RangeInclusive<usize> = 1..=1 << 20;
    pub const LAYERS: RangeInclusive<usize> = 1..=1024;
    pub const HEADS: RangeInclusive<usize> = 1..=1024;
    pub const HEAD_DIM: RangeInclusive<usize> = 2..=4096;
    pub const POSITIONS: RangeInclusive<usize> = 1..=1 << 24;
    pub const PIXELS: RangeInclusive<usize> = 1..=1 << 16;
    pub const EPSILON: RangeInclusive<f64> = 1e-12..=0.1;
}

/// Pixels per token side, of the ViT's patches and of the decoder alike.
const PATCH: usize = 16;
/// Window of transformers' Qwen2 configuration where the file names none.
const DEFAULT_WINDOW: usize = 4096;
/// Attention heads of both SigLIP models.
const SIGLIP_HEADS: usize = 16;
/// Groups of the projector's group norms.
const PROJECTOR_GROUPS: usize = 32;

impl XOmniConfig {
    /// Reads `config.json` in the X-Omni directory `dir`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Checkpoint`] naming the first field that
    /// is missing or outside of what inference supports.
    pub fn open(dir: &Path) -> Result<Self> {
        let file = dir.join("config.json");
        Self::parse(&fields::read(&file)?, &file)
    }

    /// Parses the text of `config.json`; `file` is named in errors.
    ///
    /// # Errors
    /// As [`XOmniConfig::open`].
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let map = fields::parse_object(text, file)?;
        let root = Fields::new(&map, file);
        if root.text("model_type")? != "x-omni" {
            return Err(root.refuse("model_type", "x-omni", root.text("model_type")?));
        }
        let backbone = BackboneConfig::from_fields(&root)?;
        let vision = root.section("vision_config")?;
        vision.choice_or_first("dtype", &["float32", "float16", "bfloat16"])?;
        let encoder = EncoderConfig::from_fields(&vision.section("encoder")?, &backbone)?;
        Ok(Self {
            eos_token_ids: token_ids(&root, backbone.text_vocab + backbone.mm_vocab)?
                .unwrap_or_default(),
            mm_special_tokens: special_tokens(&root)?,
            transform: TransformConfig::from_fields(&vision.section("transform")?)?,
            decoder: DecoderConfig::from_fields(&vision.section("decoder")?)?,
            encoder,
            backbone,
        })
    }
}

/// `eos_token_id`: an id or a list of ids below `vocab`; `None` if absent or null.
pub(super) fn token_ids(root: &Fields<'_>, vocab: usize) -> Result<Option<Vec<u32>>> {
    const NAME: &str = "eos_token_id";
    let values = match root.get(NAME) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    let id = |value| {
        let id = root.whole(NAME, value, 0..=vocab - 1)?;
        u32::try_from(id).map_err(|_| root.refuse(NAME, "a 32-bit number", id))
    };
    values.iter().map(id).collect::<Result<_>>().map(Some)
}

fn special_tokens(root: &Fields<'_>) -> Result<[String; 3]> {
    const NAME: &str = "mm_special_tokens";
    let value = root.get(NAME).unwrap_or(&Value::Null);
    let tokens: Option<Vec<&str>> = value
        .as_array()
        .and_then(|list| list.iter().map(Value::as_str).collect());
    match tokens.as_deref() {
        Some([start, end, image])
            if start != end
                && end != image
                && image != start
                && [start, end, image].iter().all(|token| !token.is_empty()) =>
        {
            Ok([start, end, image].map(|token| (*token).to_owned()))
        }
        _ => Err(root.refuse(NAME, "three different non-empty strings", value)),
    }
}

impl BackboneConfig {
    fn from_fields(root: &Fields<'_>) -> Result<Self> {
        let text_vocab = root.size("vocab_size", limit::VOCAB)?;
        let mm_vocab = root.size("mm_vocab_size", limit::VOCAB)?;
        let image_vocab = root.size("image_vocab_size", 1..=mm_vocab)?;
        let hidden = root.size("hidden_size", limit::WIDTH)?;
        let layers = root.size("num_hidden_layers", limit::LAYERS)?;
        let adapter_layers = root.size("num_mm_adap_layers", 0..=layers)?;
        let head_layers = root.size("num_mm_head_layers", 0..=layers - adapter_layers)?;
        let heads = root.size("num_attention_heads", limit::HEADS)?;
        let kv_heads = root.size("num_key_value_heads", 1..=heads)?;
        if heads % kv_heads != 0 {
            let rule = format!("a divisor of num_attention_heads ({heads})");
            return Err(root.refuse("num_key_value_heads", rule, kv_heads));
        }
        root.choice_or_first("hidden_act", &["silu"])?;
        root.only_null("rope_scaling")?;
        root.only_flag("tie_word_embeddings", false, false)?;
        Ok(Self {
            text_vocab,
            mm_vocab,
            image_vocab,
            hidden,
            intermediate: root.size("intermediate_size", limit::WIDTH)?,
            layers,
            adapter_layers,
            head_layers,
            heads,
            kv_heads,
            head_dim: head_dim(root, hidden, heads)?,
            rms_norm_eps: root.number("rms_norm_eps", limit::EPSILON)? as f32,
            rope_theta: root.number("rope_theta", 1.0..=1e12)?,
            sliding_window: match root.get("sliding_window") {
                None => Some(DEFAULT_WINDOW),
                Some(Value::Null) => None,
                Some(_) => Some(root.size("sliding_window", 1..=usize::MAX)?),
            },
            max_positions: root.size("max_position_embeddings", limit::POSITIONS)?,
        })
    }
}

fn head_dim(root: &Fields<'_>, hidden: usize, heads: usize) -> Result<usize> {
    let head_dim = match root.get("head_dim") {
        None | Some(Value::Null) if !hidden.is_multiple_of(heads) => {
            let rule = format!("a multiple of num_attention_heads ({heads})");
            return Err(root.refuse("hidden_size", rule, hidden));
        }
        None | Some(Value::Null) => hidden / heads,
        Some(_) => root.size("head_dim", limit::HEAD_DIM)?,
    };
    if head_dim % 2 == 0 && limit::HEAD_DIM.contains(&head_dim) {
        return Ok(head_dim);
    }
    let rule = format!("an even number up to {}", limit::HEAD_DIM.end());
    Err(root.refuse("head_dim", rule, head_dim))
}

impl TransformConfig {
    fn from_fields(transform: &Fields<'_>) -> Result<Self> {
        transform.only_null("random_ratio")?;
        let short_size = transform.size("short_size", limit::PIXELS)?;
        Ok(Self {
            short_size,
            long_size: transform.size("long_size", short_size..=*limit::PIXELS.end())?,
            patch_size: transform.size("patch_size", PATCH..=PATCH)?,
            filtering: transform.flag("filtering")?,
            min_short_size: transform.size("min_short_size", 0..=*limit::PIXELS.end())?,
            max_aspect_ratio: transform.number("max_aspect_ratio", 1.0..=1e6)?,
        })
    }
}

impl EncoderConfig {
    fn from_fields(encoder: &Fields<'_>, backbone: &BackboneConfig) -> Result<Self> {
        encoder.text("siglip_name")?;
        encoder.choice_or_first(
            "siglip_name",
            &["siglip2_giant_patch16_384", "siglip_so400m_patch16_384"],
        )?;
        let z_channels = encoder.size("z_channels", limit::WIDTH)?;
        if z_channels % PROJECTOR_GROUPS != 0 {
            let rule = format!("a multiple of the projector's {PROJECTOR_GROUPS} groups");
            return Err(encoder.refuse("z_channels", rule, z_channels));
        }
        let codes = backbone.image_vocab;
        let codebook_size = encoder.size("codebook_size", limit::VOCAB)?;
        if codebook_size != codes {
            let rule = format!("image_vocab_size ({codes})");
            return Err(encoder.refuse("codebook_size", rule, codebook_size));
        }
        Ok(Self {
            siglip_path: encoder.path("siglip_path")?,
            projector_path: encoder.path("projector_path")?,
            heads: SIGLIP_HEADS,
            z_channels,
            codebook_size,
            codebook_dim: encoder.size("codebook_dim", limit::WIDTH)?,
        })
    }
}

impl DecoderConfig {
    fn from_fields(decoder: &Fields<'_>) -> Result<Self> {
        let cfg_scale = decoder.number("cfg_scale", 0.0..=1000.0)? as f32;
        if cfg_scale <= 1.0 {
            return Err(decoder.refuse("cfg_scale", "greater than 1", cfg_scale));
        }
        let second = decoder.number("cfg_scale_2", 0.0..=1000.0)? as f32;
        if second != cfg_scale {
            let rule = format!("cfg_scale ({cfg_scale})");
            return Err(decoder.refuse("cfg_scale_2", rule, second));
        }
        Ok(Self {
            model_path: decoder.path("model_path")?,
            num_inference_steps: decoder.size("num_inference_steps", 1..=1000)?,
            cfg_scale,
            upscale_factor: decoder.size("upscale_factor", PATCH..=PATCH)?,
        })
    }
}

#[cfg(test)]
mod tests;
