//! Operations of the backbone, over rows of many sequences.

use std::{ops::Range, sync::Arc};

use super::Device;
use crate::{
    Result,
    sampling::{Draw, Drawn},
};

/// Shape of the paged K/V cache of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers.
    pub layers: usize,
    /// K/V heads held by this rank.
    pub kv_heads: usize,
    /// Channels a head.
    pub head_dim: usize,
    /// Blocks in the pool.
    pub blocks: usize,
    /// Positions a block.
    pub block_size: usize,
}

/// The rows of a step as the device sees them: parallel arrays of length [`RowBatch::len`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowBatch {
    /// Token ids, all known.
    pub tokens: Vec<u32>,
    /// Whether the token is multimodal (`token >= text_vocab`).
    pub multimodal: Vec<bool>,
    /// Position in the sequence, from 0.
    pub positions: Vec<u32>,
    /// Index of the row's sequence in `tables`.
    pub tables_index: Vec<u32>,
    /// Block tables: the K/V blocks of each sequence, in order of position.
    pub tables: Vec<Arc<[u32]>>,
}

impl RowBatch {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// Fused operations of a decoder-only transformer.
pub trait TransformerOps: Device {
    /// The paged K/V cache of all layers.
    type Kv: Send + Sync;

    /// A cache of `layout`.
    fn kv_cache(&self, layout: KvLayout) -> Result<Self::Kv>;

    /// `out[r] = table[ids[r]]`, zeros where `ids[r]` is `None`. `table` is `[vocab, width]`.
    fn embed(
        &self,
        table: &Self::Matrix,
        ids: &[Option<u32>],
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `out[r] = weight_of(r) · x[r] / sqrt(mean(x[r]²) + eps)` over rows of `width`, where
    /// `weight_of(r)` is `weights.1` for rows with `select[r]` and `weights.0` for the others.
    fn rms_norm_select(
        &self,
        x: &Self::Buffer,
        weights: (&Self::Vector, &Self::Vector),
        select: &[bool],
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `h[r] += delta[r]` for rows with `update[r]` (all rows if `None`; nothing if `delta` is
    /// `None`), then `out = rms_norm(h) · weight`.
    fn residual_rms_norm(
        &self,
        h: &mut Self::Buffer,
        delta: Option<(&Self::Buffer, Option<&[bool]>)>,
        rows: usize,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `h[r] += delta[r]` for rows with `update[r]` (all rows if `None`).
    fn residual(
        &self,
        h: &mut Self::Buffer,
        delta: &Self::Buffer,
        rows: usize,
        width: usize,
        update: Option<&[bool]>,
    ) -> Result<()>;

    /// Rotates (half-split) the queries and keys of `qkv` `[rows, (heads + 2·kv_heads)·d]` in place
    /// by each row's position and stores keys and values into layer `layer` of the cache.
    fn rope_append(
        &self,
        qkv: &mut Self::Buffer,
        heads: usize,
        rows: &RowBatch,
        theta: f64,
        layer: usize,
        kv: &mut Self::Kv,
    ) -> Result<()>;

    /// `out[r] = attention` `[rows, heads·d]` of each row's queries over the cached positions of
    /// its own sequence up to its own (and within `window`). Query head `h` of this rank reads its
    /// K/V head `kv_head_of[h]`. Keys are read in splits of [`super::cpu::KV_SPLIT`] positions
    /// from position 0, and the splits are merged in order.
    #[expect(
        clippy::too_many_arguments,
        reason = "an attention call has that many inputs"
    )]
    fn attention(
        &self,
        qkv: &Self::Buffer,
        rows: &RowBatch,
        kv_head_of: &[usize],
        window: Option<usize>,
        layer: usize,
        kv: &Self::Kv,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `out[r, i] = silu(gate_up[r, i]) · gate_up[r, width + i]`.
    fn silu_mul(
        &self,
        gate_up: &Self::Buffer,
        rows: usize,
        width: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// The product of a row-parallel weight, not yet summed across ranks: the columns of each
    /// range of `chunks` (a power of two of them) are summed alone and the chunk sums are added as
    /// a balanced binary tree: `((0+1)+(2+3))+…`. `out` is `[rows, w.out]`.
    fn linear_chunked(
        &self,
        x: &Self::Buffer,
        rows: usize,
        w: &Self::Matrix,
        chunks: &[Range<usize>],
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Adds the first `len` values of each part (a power of two of them) as a balanced binary tree.
    fn tree_sum(&self, parts: &[Self::Buffer], len: usize, out: &mut Self::Buffer) -> Result<()>;

    /// `out` `[rows, Σ widths]` from parts `[rows, widths[p]]` side by side.
    fn concat_columns(
        &self,
        parts: &[Self::Buffer],
        widths: &[usize],
        rows: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Draws one token for each entry of `draws` from `logits` `[rows, vocab]`; `None` where the
    /// scores are not finite.
    fn sample(
        &self,
        logits: &Self::Buffer,
        vocab: usize,
        draws: &[RowDraw<'_>],
    ) -> Result<Vec<Option<Drawn>>>;

    /// Keys and values of one block of one layer, each `[kv_heads, block_size, head_dim]`.
    fn read_kv(&self, kv: &Self::Kv, layer: usize, block: u32) -> Result<(Vec<f32>, Vec<f32>)>;
}

/// A draw from the rows of a logits buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct RowDraw<'a> {
    /// The conditional row.
    pub row: usize,
    /// The unconditional row, if guided.
    pub uncond_row: Option<usize>,
    /// How.
    pub draw: Draw,
    /// Indices that are never drawn.
    pub suppressed: &'a [u32],
}
