//! The FLUX transformer with SigLIP input: a rectified-flow transformer of double-stream and
//! single-stream blocks (diffusers `FluxTransformer2DModel`), into whose image stream the
//! picture's semantic tokens are added between the two kinds.
//!
//! It always runs the pair of classifier-free guidance as a batch of two: the prompt with the
//! picture's tokens, then the empty prompt without.

mod block;
mod embed;
mod run;

pub use embed::{rope_tables, sinusoid};
pub use run::{Conditions, FluxRun};

use crate::{
    Error, Result,
    checkpoint::{FluxConfig, Weights},
    model::dense::Dense,
    ops::ImageOps,
};

use block::{DoubleBlock, SingleBlock};
use embed::{Mlp, TIME_CHANNELS};

/// Rows of the guidance pair.
pub const BATCH: usize = 2;

/// Epsilon of every norm of the transformer.
const EPS: f32 = 1e-6;

/// The transformer's weights.
pub struct Flux<O: ImageOps> {
    config: FluxConfig,
    x_embedder: Dense<O>,
    context_embedder: Dense<O>,
    timestep_embedder: Mlp<O>,
    guidance_embedder: Option<Mlp<O>>,
    text_embedder: Mlp<O>,
    siglip_embed: Dense<O>,
    double_blocks: Vec<DoubleBlock<O>>,
    single_blocks: Vec<SingleBlock<O>>,
    norm_out: Dense<O>,
    proj_out: Dense<O>,
}

impl<O: ImageOps> Flux<O> {
    /// Takes the transformer's tensors.
    ///
    /// # Errors
    /// As [`Weights::tensor`] and [`Weights::finish`], and what the device says;
    /// [`Error::Unsupported`] for rotary axes that do not fill a head.
    pub fn load(ops: &O, mut weights: Weights, config: &FluxConfig) -> Result<Self> {
        let (width, w) = (config.heads * config.head_dim, &mut weights);
        let axes = config.axes_dims_rope;
        if axes.iter().sum::<usize>() != config.head_dim || axes.iter().any(|a| a % 2 != 0) {
            let reason = format!("not even numbers that sum to {}", config.head_dim);
            return Err(Error::Unsupported {
                what: format!("axes_dims_rope {axes:?}"),
                reason,
            });
        }
        let embed = |part: &str| format!("time_text_embed.{part}_embedder");
        let guidance_embedder = config
            .guidance_embeds
            .then(|| Mlp::load(ops, w, &embed("guidance"), TIME_CHANNELS, width))
            .transpose()?;
        let pooled = config.pooled_projection_dim;
        let siglip = config.siglip_channels;
        let flux = Self {
            x_embedder: Dense::load(ops, w, "x_embedder", config.in_channels, width)?,
            context_embedder: {
                Dense::load(
                    ops,
                    w,
                    "context_embedder",
                    config.joint_attention_dim,
                    width,
                )?
            },
            timestep_embedder: Mlp::load(ops, w, &embed("timestep"), TIME_CHANNELS, width)?,
            guidance_embedder,
            text_embedder: Mlp::load(ops, w, &embed("text"), pooled, width)?,
            siglip_embed: Dense::load_unbiased(ops, w, "siglip_embed", siglip, width)?,
            double_blocks: (0..config.double_blocks)
                .map(|i| DoubleBlock::load(ops, w, i, config))
                .collect::<Result<_>>()?,
            single_blocks: (0..config.single_blocks)
                .map(|i| SingleBlock::load(ops, w, i, config))
                .collect::<Result<_>>()?,
            norm_out: Dense::load(ops, w, "norm_out.linear", width, 2 * width)?,
            proj_out: Dense::load(ops, w, "proj_out", width, config.out_channels)?,
            config: config.clone(),
        };
        weights.finish(|_| false)?;
        Ok(flux)
    }

    /// Sizes of the transformer.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// The inner width D.
    pub fn width(&self) -> usize {
        self.config.heads * self.config.head_dim
    }
}
