//! Embedding tables, and heads split by vocabulary entry.

use super::{Collective, Shard, linear::ColumnParallel};
use crate::{
    Result,
    checkpoint::HostTensor,
    ops::{MatrixPart, Residual, TransformerOps, VocabularyPart},
};

/// The text and the multimodal embedding table, one after the other. Every rank has all of both: they
/// are small beside the layers, and one exchange less in every step.
pub struct VocabularyEmbedding<D: TransformerOps> {
    table: D::Table,
    part: VocabularyPart,
}

impl<D: TransformerOps> VocabularyEmbedding<D> {
    /// Both tables, `[V, width]` and `[M, width]`.
    pub fn load(device: &D, text_table: HostTensor, multimodal_table: HostTensor) -> Result<Self> {
        let text_vocab = text_table.shape()[0];
        let part = VocabularyPart {
            text: 0..text_vocab,
            multimodal: 0..multimodal_table.shape()[0],
            text_vocab,
        };
        let tables = [text_table, multimodal_table].map(MatrixPart::whole);
        let table = device.table(&tables)?;
        Ok(Self { table, part })
    }

    /// Begins a residual stream, the same on every rank.
    pub fn forward(&self, device: &D, rows: &D::Rows, to: Residual<'_, D>) -> Result<()> {
        device.embed_into(&self.table, &self.part, rows, to)
    }
}

/// An output head without bias, `[vocab, width]`.
pub struct VocabularyHead<D: TransformerOps> {
    linear: ColumnParallel<D>,
    /// Entries held by each rank.
    widths: Vec<usize>,
    /// This rank's logits, and those of all ranks one after the other, where there are others.
    shared: Option<(D::Buffer, D::Buffer)>,
    logits: D::Buffer,
}

impl<D: TransformerOps> VocabularyHead<D> {
    /// This rank's part of the first `vocab` entries of `weight`, for up to `max_rows` rows.
    pub fn load(
        device: &D,
        shard: Shard,
        weight: HostTensor,
        vocab: usize,
        max_rows: usize,
    ) -> Result<Self> {
        let linear = ColumnParallel::load(device, &[(weight, shard.vocabulary(vocab))], &[])?;
        let part = |rank| Shard::new(rank, shard.size()).map(|s| s.vocabulary(vocab).len());
        let widths: Vec<_> = (0..shard.size()).map(part).collect::<Result<_>>()?;
        // Ranks send equal lengths, so the last one's part is padded to the first one's.
        let parts = |ranks| device.buffer(ranks * max_rows * widths[0]);
        let shared = match widths.len() {
            1 => None,
            ranks => Some((parts(1)?, parts(ranks)?)),
        };
        Ok(Self {
            linear,
            shared,
            logits: device.buffer(max_rows * widths.iter().sum::<usize>())?,
            widths,
        })
    }

    /// Entries of all ranks.
    pub fn vocab(&self) -> usize {
        self.widths.iter().sum()
    }

    /// Logits `[rows, vocab]` of `x` `[rows, width]`, the same on every rank.
    pub fn forward(
        &mut self,
        device: &D,
        collective: &mut dyn Collective<D>,
        x: &D::Buffer,
        rows: usize,
    ) -> Result<&D::Buffer> {
        let logits = &mut self.logits;
        let Some((local, all)) = &mut self.shared else {
            self.linear.forward(device, x, rows, logits)?;
            return Ok(logits);
        };
        self.linear.forward(device, x, rows, local)?;
        collective.gather_columns(device, local, &self.widths, rows, all, logits)?;
        Ok(logits)
    }

    /// The logits that were computed last.
    pub fn logits(&self) -> &D::Buffer {
        &self.logits
    }
}
