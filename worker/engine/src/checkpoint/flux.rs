//! Configuration files of the FLUX directory and of the FLUX-with-SigLIP transformer.

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
