//! `config.json` of an X-Omni directory.

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
    /// Sizing of input pictures.
    pub transform: TransformConfig,
    /// The image tokenizer.
    pub encoder: EncoderConfig,
    /// The diffusion decoder.
    pub decoder: DecoderConfig,
}
