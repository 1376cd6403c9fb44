//! Operations of the backbone, over rows of many sequences.

use std::{ops::Range, sync::Arc};

use super::{Device, MatrixPart, Residual};
use crate::{
    Result,
    parallel::{Collective, Meeting},
    sampling::{Draw, Drawn},
    schedule::{Mode, Slot, TokenSource},
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

/// The most that a step, and the sequences that steps are made of, can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows of a step.
    pub max_rows: usize,
    /// Sequences at a time; slots are below it.
    pub slots: usize,
    /// Positions of a sequence.
    pub max_positions: usize,
    /// Positions a K/V block.
    pub block_size: usize,
    /// First id of the multimodal vocabulary.
    pub text_vocab: usize,
    /// How far a row sees, its own position included.
    pub window: Option<usize>,
    /// K/V heads of this rank.
    pub kv_heads: usize,
}

/// The rows and draws of a step as the host plans them: parallel arrays of length
/// [`StepPlan::len`], and lists by [`Mode`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepPlan {
    /// Sequences that begin: their slots and K/V blocks, in order of position.
    pub admitted: Vec<(Slot, Arc<[u32]>)>,
    /// The sequence of each row.
    pub slots: Vec<Slot>,
    /// The token of each row.
    pub tokens: Vec<TokenSource>,
    /// Position of each row in its sequence, from 0.
    pub positions: Vec<u32>,
    /// Rows whose logits are wanted, by mode.
    pub picked: ByMode<Vec<u32>>,
    /// What is drawn from them, by mode.
    pub draws: ByMode<Vec<RowDraw>>,
}

impl StepPlan {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }
}

/// One thing for each mode.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ByMode<T> {
    /// Of image codes.
    pub image: T,
    /// Of text tokens.
    pub text: T,
}

impl<T> ByMode<T> {
    /// That of `mode`.
    pub fn of(&self, mode: Mode) -> &T {
        match mode {
            Mode::Image => &self.image,
            Mode::Text => &self.text,
        }
    }

    /// That of `mode`, to change.
    pub fn of_mut(&mut self, mode: Mode) -> &mut T {
        match mode {
            Mode::Image => &mut self.image,
            Mode::Text => &mut self.text,
        }
    }
}

/// A draw from the picked rows of a mode.
#[derive(Debug, Clone, PartialEq)]
pub struct RowDraw {
    /// Index of the conditional row among the picked ones.
    pub row: usize,
    /// Index of the unconditional row, if guided.
    pub uncond_row: Option<usize>,
    /// The sequence that receives the token, and that of the unconditional row.
    pub slots: (Slot, Option<Slot>),
    /// Index of the draw in the step.
    pub place: usize,
    /// How.
    pub draw: Draw,
}

/// The entries of both embedding tables that a rank holds, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VocabularyPart {
    /// Entries of the text table.
    pub text: Range<usize>,
    /// Entries of the multimodal table.
    pub multimodal: Range<usize>,
    /// Entries of the whole text table: ids from here on are multimodal.
    pub text_vocab: usize,
}

impl VocabularyPart {
    /// The row of this rank's table that holds `token`.
    pub fn local_row(&self, token: u32) -> Option<u32> {
        let token = token as usize;
        let row = if token < self.text_vocab {
            self.text.contains(&token).then(|| token - self.text.start)
        } else {
            let entry = token - self.text_vocab;
            let held = self.multimodal.contains(&entry);
            held.then(|| self.text.len() + entry - self.multimodal.start)
        };
        row.map(|row| row as u32)
    }
}

/// The rows of a step where a device's operations read them, and the last token drawn of each
/// sequence.
pub trait StepRows: Send {
    /// Rows that the operations compute: those of the step, and perhaps some that nobody reads.
    fn len(&self) -> usize;

    /// Whether there are no rows.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of logits of `mode` that the operations compute, likewise.
    fn picked(&self, mode: Mode) -> usize;

    /// Whether the oldest step that was not collected has ended, so that collecting it takes no time.
    ///
    /// # Errors
    /// What the device says.
    fn ended(&self) -> Result<bool>;
}

/// What a device runs for a step: operations on its rows.
pub type StepWork<'a, R> = dyn FnMut(&mut R) -> Result<()> + 'a;

/// Fused operations of a decoder-only transformer.
pub trait TransformerOps: Device {
    /// The paged K/V cache of all layers.
    type Kv: Send + Sync;

    /// An embedding table.
    type Table: Send + Sync;

    /// The rows of a step.
    type Rows: StepRows;

    /// Steps that may have begun before the oldest of them is collected ([`TransformerOps::drawn`]).
    const IN_FLIGHT: usize;

    /// The exchange of a rank that has this device for itself, once it has met the others: through
    /// the host, where devices have no way to each other.
    ///
    /// # Errors
    /// [`crate::Error::GroupLost`] if a rank is gone or overdue, or [`crate::Error::Unsupported`] if
    /// devices cannot reach each other.
    fn exchange(&self, meeting: Meeting<Self>) -> Result<Box<dyn Collective<Self>>>
    where
        Self: Sized,
    {
        Ok(meeting.host)
    }

    /// A cache of `layout`.
    fn kv_cache(&self, layout: KvLayout) -> Result<Self::Kv>;

    /// A table of stacked parts.
    fn table(&self, parts: &[MatrixPart]) -> Result<Self::Table>;

    /// A weight of stacked parts that a device may sum in these chunks of its columns, and that
    /// [`TransformerOps::linear_chunked`] does.
    fn matrix_in_chunks(
        &self,
        parts: &[MatrixPart],
        chunks: &[Range<usize>],
    ) -> Result<Self::Matrix>;

    /// The weight of [`TransformerOps::linear_gated`].
    fn gated_matrix(&self, gate: MatrixPart, up: MatrixPart) -> Result<Self::Matrix> {
        self.matrix(&[gate, up])
    }

    /// `len` zeros in the type in which products read activations; [`Device::buffer`] is in that of sums.
    fn activations(&self, len: usize) -> Result<Self::Buffer>;

    /// Room for steps within `limits`.
    fn rows(&self, limits: &StepLimits) -> Result<Self::Rows>;

    /// Makes `plan` the step that the operations read.
    ///
    /// # Errors
    /// [`crate::Error::GroupLost`] for a step that does not follow from those before, or if
    /// [`TransformerOps::IN_FLIGHT`] steps wait to be collected.
    fn begin(&self, plan: &StepPlan, rows: &mut Self::Rows) -> Result<()>;

    /// Runs the work of the step that begins. Where it is `replayable` (always the same operations
    /// for steps of the same number of rows and picked rows, and nothing of the host), the device may
    /// record it once and play it from then on.
    fn run(
        &self,
        rows: &mut Self::Rows,
        replayable: bool,
        work: &mut StepWork<'_, Self::Rows>,
    ) -> Result<()>;

    /// What the oldest step drew that was not collected yet, in order of [`RowDraw::place`]; `None`
    /// where the scores were not finite. Waits for it.
    fn drawn(&self, rows: &mut Self::Rows) -> Result<Vec<Option<Drawn>>>;

    /// Forgets every sequence, step and record, whatever it returns.
    fn forget(&self, rows: &mut Self::Rows) -> Result<()>;

    /// `out[r]` = the table's row for the token of row `r`, zeros where the table's `part` does not
    /// hold it.
    fn embed(
        &self,
        table: &Self::Table,
        part: &VocabularyPart,
        rows: &Self::Rows,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// [`TransformerOps::embed`] to a residual stream, and the norm of it.
    fn embed_into(
        &self,
        table: &Self::Table,
        part: &VocabularyPart,
        rows: &Self::Rows,
        to: Residual<'_, Self>,
    ) -> Result<()>
    where
        Self: Sized,
    {
        self.embed(table, part, rows, to.h)?;
        self.residual(None, to)
    }

    /// `out[i] = weight · h[r] / sqrt(mean(h[r]²) + eps)` for the picked rows `r` of `mode`; the
    /// weight is `weights.1` for multimodal rows and `weights.0` for the others.
    fn final_norm(
        &self,
        h: &Self::Buffer,
        weights: (&Self::Vector, &Self::Vector),
        rows: &Self::Rows,
        mode: Mode,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `h[r] += delta[r]` (of multimodal rows only, if so flagged; nothing if `delta` is `None`), then, if there is a norm,
    /// `out[r] = weight · h[r] / sqrt(mean(h[r]²) + eps)`. A device may leave the division to whoever reads `out`.
    /// Of a `delta` that is yet to be added up, what is added may be gone then.
    fn residual(&self, delta: Option<&mut Self::Buffer>, to: Residual<'_, Self>) -> Result<()>
    where
        Self: Sized;

    /// Rotates (half-split) the queries and keys of `qkv` `[rows, (heads + 2·kv_heads)·d]` in place
    /// by each row's position and stores keys and values into layer `layer` of the cache.
    fn rope_append(
        &self,
        qkv: &mut Self::Buffer,
        heads: usize,
        rows: &Self::Rows,
        theta: f64,
        layer: usize,
        kv: &mut Self::Kv,
    ) -> Result<()>;

    /// `out[r] = attention` `[rows, heads·d]` of each row's queries over the cached positions of
    /// its own sequence up to its own (and within `window`). Query head `h` of this rank reads its
    /// K/V head `kv_head_of[h]`. Keys are read in splits of [`super::cpu::KV_SPLIT`] positions
    /// from position 0, and the splits are merged in order. `ahead` is a weight that is needed soon, but not next: a device
    /// may bring some of it closer while its memory would be idle.
    #[expect(
        clippy::too_many_arguments,
        reason = "an attention call has that many inputs"
    )]
    fn attention(
        &self,
        qkv: &Self::Buffer,
        rows: &Self::Rows,
        kv_head_of: &[usize],
        window: Option<usize>,
        layer: usize,
        kv: &Self::Kv,
        ahead: Option<&Self::Matrix>,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// [`TransformerOps::rope_append`], then [`TransformerOps::attention`]; what `qkv` holds is of no use then.
    #[expect(
        clippy::too_many_arguments,
        reason = "an attention call has that many inputs"
    )]
    fn append_and_attend(
        &self,
        qkv: &mut Self::Buffer,
        rows: &Self::Rows,
        kv_head_of: &[usize],
        theta: f64,
        window: Option<usize>,
        layer: usize,
        kv: &mut Self::Kv,
        ahead: Option<&Self::Matrix>,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.rope_append(qkv, kv_head_of.len(), rows, theta, layer, kv)?;
        self.attention(qkv, rows, kv_head_of, window, layer, kv, ahead, out)
    }

    /// `out[r, i] = silu(gate_up[r, i]) · gate_up[r, width + i]`.
    fn silu_mul(
        &self,
        gate_up: &Self::Buffer,
        rows: usize,
        width: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `out[r, i] = silu(gate(x)[r, i]) · up(x)[r, i]`, `[rows, width]`. `scratch` has room for `[rows, 2 · width]`.
    fn linear_gated(
        &self,
        x: &Self::Buffer,
        rows: usize,
        w: &Self::Matrix,
        width: usize,
        scratch: &mut Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.linear(x, rows, w, None, scratch)?;
        self.silu_mul(scratch, rows, width, out)
    }

    /// The product of a row-parallel weight, not yet summed across ranks: the columns of each
    /// range of `chunks` (a power of two of them, those that `w` was made of) are summed alone and the chunk sums are added as
    /// a balanced binary tree: `((0+1)+(2+3))+…`. `out` is `[rows, w.out]`.
    fn linear_chunked(
        &self,
        x: &Self::Buffer,
        rows: usize,
        w: &Self::Matrix,
        chunks: &[Range<usize>],
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Adds `count` parts (a power of two of them) `[count, len]` as a balanced binary tree. A device may do so where `out` is
    /// read: `parts` stay as they are until then, and may be gone after that.
    fn tree_sum(
        &self,
        parts: &Self::Buffer,
        count: usize,
        len: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `out` `[rows, Σ widths]` from parts `[rows, widths[p]]` side by side. Part `p` begins at value
    /// `p · rows · widths[0]`, so none is wider than the first; all are as wide but for the last ones,
    /// which have what is left.
    fn concat_columns(
        &self,
        parts: &Self::Buffer,
        widths: &[usize],
        rows: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Draws one token for each draw of `mode` from its `logits` `[picked, vocab]`. Entry `i` is token
    /// `vocab.start + i`, which becomes the last token of the draw's sequences; `suppressed`
    /// entries are never drawn.
    fn sample(
        &self,
        logits: &Self::Buffer,
        vocab: Range<u32>,
        suppressed: &[u32],
        mode: Mode,
        rows: &mut Self::Rows,
    ) -> Result<()>;

    /// Keys and values of one block of one layer, each `[kv_heads, block_size, head_dim]`.
    fn read_kv(&self, kv: &Self::Kv, layer: usize, block: u32) -> Result<(Vec<f32>, Vec<f32>)>;
}

/// The width of all parts together and of the first, if the others are as
/// [`TransformerOps::concat_columns`] says.
pub(super) fn column_parts(widths: &[usize]) -> Option<(usize, usize)> {
    let (total, each) = (widths.iter().sum::<usize>(), *widths.first()?);
    let left = |part: usize| total.saturating_sub(part * each).min(each);
    let mut parts = widths.iter().enumerate();
    parts
        .all(|(part, &width)| width == left(part))
        .then_some((total, each))
}
