//! Operations of the image tokenizer, the text encoders and the diffusion decoder.

use super::Device;
use crate::Result;

/// Pointwise non-linearities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `0.5 x (1 + erf(x / √2))`.
    GeluErf,
    /// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
}

/// Sizes of a dense attention: `batch` independent sequences, stored one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Independent sequences.
    pub batch: usize,
    /// Positions of each sequence.
    pub len: usize,
    /// Heads; queries, keys and values all have `heads · head_dim` columns.
    pub heads: usize,
    /// Channels a head.
    pub head_dim: usize,
}

/// Sizes of a 2-D convolution over channel-last pictures `[height·width, channels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Input rows.
    pub height: usize,
    /// Input columns.
    pub width: usize,
    /// Input channels.
    pub channels: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step between output positions.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: usize,
}

impl ConvShape {
    /// Output `(height, width)`.
    pub fn output(&self) -> (usize, usize) {
        let side = |n: usize| (n + 2 * self.padding - self.kernel) / self.stride + 1;
        (side(self.height), side(self.width))
    }
}

/// Which statistic a row norm uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Mean and biased variance.
    Layer,
    /// Root mean square.
    Rms,
}

/// Fused operations of encoders, convolution nets and diffusion transformers.
pub trait ImageOps: Device {
    /// Normalises each row of `width`, then `· weight + bias` where given.
    #[expect(clippy::too_many_arguments, reason = "a norm has that many inputs")]
    fn row_norm(
        &self,
        norm: Norm,
        x: &Self::Buffer,
        rows: usize,
        width: usize,
        weight: Option<&Self::Vector>,
        bias: Option<&Self::Vector>,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Layer norm without affine, then `· (1 + scale) + shift`. The `rows` rows are `batch` equal
    /// runs; `modulation` is `[batch, columns]` and run `b` uses its columns `shift.. + width` and
    /// `scale.. + width`.
    #[expect(clippy::too_many_arguments, reason = "a norm has that many inputs")]
    fn adaptive_norm(
        &self,
        x: &Self::Buffer,
        rows: usize,
        width: usize,
        modulation: &Self::Buffer,
        batch: usize,
        shift: usize,
        scale: usize,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `x += gate · y`, `gate` being columns `gate.. + width` of the run's row of `modulation`.
    #[expect(
        clippy::too_many_arguments,
        reason = "a gated residual has that many inputs"
    )]
    fn gated_add(
        &self,
        x: &mut Self::Buffer,
        y: &Self::Buffer,
        rows: usize,
        width: usize,
        modulation: &Self::Buffer,
        batch: usize,
        gate: usize,
    ) -> Result<()>;

    /// `x += y`.
    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer) -> Result<()>;

    /// `x = act(x)` in place.
    fn activate(&self, x: &mut Self::Buffer, act: Activation) -> Result<()>;

    /// `gate = act(gate) · up`.
    fn activate_mul(
        &self,
        gate: &mut Self::Buffer,
        up: &Self::Buffer,
        act: Activation,
    ) -> Result<()>;

    /// Softmax attention of every query over its whole sequence (or its past, if `causal`).
    /// `q`, `k`, `v` and `out` are `[batch·len, heads·head_dim]`; `bias` is `[heads, len, len]`
    /// and is added to the scaled scores.
    #[expect(
        clippy::too_many_arguments,
        reason = "an attention call has that many inputs"
    )]
    fn dense_attention(
        &self,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        shape: AttentionShape,
        scale: f32,
        bias: Option<&Self::Buffer>,
        causal: bool,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// RMS-normalises each head of `x` `[batch·len, heads·head_dim]` by `weight` `[head_dim]`, then
    /// rotates adjacent channel pairs by `cos`, `sin` `[len, head_dim/2]` of the row's place in its
    /// sequence where given.
    fn head_norm_rope(
        &self,
        x: &mut Self::Buffer,
        shape: AttentionShape,
        weight: &Self::Vector,
        eps: f32,
        rope: Option<(&Self::Buffer, &Self::Buffer)>,
    ) -> Result<()>;

    /// Convolution; `x` `[height·width, channels]`, `w` a matrix `[out, kernel·kernel·channels]`
    /// whose columns run over kernel row, kernel column, channel, `out`
    /// `[out_height·out_width, out]`.
    fn conv2d(
        &self,
        x: &Self::Buffer,
        shape: ConvShape,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Group norm of `x` `[positions, channels]` over positions and the channels of a group, affine,
    /// then `act` where given.
    #[expect(
        clippy::too_many_arguments,
        reason = "a group norm has that many inputs"
    )]
    fn group_norm(
        &self,
        x: &Self::Buffer,
        positions: usize,
        channels: usize,
        groups: usize,
        weight: &Self::Vector,
        bias: &Self::Vector,
        eps: f32,
        act: Option<Activation>,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Nearest-neighbour enlargement by two: `[h·w, channels]` to `[2h·2w, channels]`.
    fn upsample2x(
        &self,
        x: &Self::Buffer,
        height: usize,
        width: usize,
        channels: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;
}
