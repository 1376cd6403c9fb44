//! Embedding tables and heads, split by vocabulary entry.

use super::{Collective, Shard, linear::ColumnParallel};
use crate::{
    Result,
    checkpoint::HostTensor,
    ops::{MatrixPart, StepRows, TransformerOps, VocabularyPart},
};

/// The text and the multimodal embedding table, one after the other.
pub struct VocabularyEmbedding<D: TransformerOps> {
    table: D::Table,
    part: VocabularyPart,
    width: usize,
}

impl<D: TransformerOps> VocabularyEmbedding<D> {
    /// This rank's entries of both tables, `[V, width]` and `[M, width]`.
    pub fn load(
        device: &D,
        shard: Shard,
        text_table: HostTensor,
        multimodal_table: HostTensor,
    ) -> Result<Self> {
        let (text_vocab, width) = (text_table.shape()[0], text_table.shape()[1]);
        let part = VocabularyPart {
            text: shard.vocabulary(text_vocab),
            multimodal: shard.vocabulary(multimodal_table.shape()[0]),
            text_vocab,
        };
        let table = device.table(&[
            MatrixPart {
                rows: part.text.clone(),
                ..MatrixPart::whole(text_table)
            },
            MatrixPart {
                rows: part.multimodal.clone(),
                ..MatrixPart::whole(multimodal_table)
            },
        ])?;
        Ok(Self { table, part, width })
    }

    /// `out` `[rows, width]`, the same on every rank. Every token is in exactly one rank's table,
    /// so the sum over ranks is exact.
    pub fn forward(
        &self,
        device: &D,
        collective: &mut dyn Collective<D>,
        parts: &mut [D::Buffer],
        rows: &D::Rows,
        out: &mut D::Buffer,
    ) -> Result<()> {
        device.embed(&self.table, &self.part, rows, out)?;
        if collective.size() > 1 {
            let len = rows.len() * self.width;
            collective.all_gather(device, out, len, parts)?;
            device.tree_sum(parts, len, out)?;
        }
        Ok(())
    }
}

/// An output head without bias, `[vocab, width]`.
pub struct VocabularyHead<D: TransformerOps> {
    linear: ColumnParallel<D>,
    /// Entries held by each rank.
    widths: Vec<usize>,
    max_rows: usize,
    /// Made when logits are first wanted: most processes never want those of one mode.
    buffers: Option<HeadBuffers<D>>,
}

struct HeadBuffers<D: TransformerOps> {
    /// This rank's logits, where they have to meet others.
    local: Option<D::Buffer>,
    parts: Vec<D::Buffer>,
    logits: D::Buffer,
}

impl<D: TransformerOps> HeadBuffers<D> {
    fn new(device: &D, widths: &[usize], max_rows: usize) -> Result<Self> {
        // Ranks send equal lengths, so the last one's part is padded to the first one's.
        let part = || device.buffer(max_rows * widths[0]);
        let (local, ranks) = match widths.len() {
            1 => (None, 0),
            ranks => (Some(part()?), ranks),
        };
        Ok(Self {
            local,
            parts: (0..ranks).map(|_| part()).collect::<Result<_>>()?,
            logits: device.buffer(max_rows * widths.iter().sum::<usize>())?,
        })
    }
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
        Ok(Self {
            linear,
            widths: (0..shard.size()).map(part).collect::<Result<_>>()?,
            max_rows,
            buffers: None,
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
        let HeadBuffers {
            local,
            parts,
            logits,
        } = match &mut self.buffers {
            Some(buffers) => buffers,
            none => none.insert(HeadBuffers::new(device, &self.widths, self.max_rows)?),
        };
        let Some(local) = local else {
            self.linear.forward(device, x, rows, logits)?;
            return Ok(logits);
        };
        self.linear.forward(device, x, rows, local)?;
        collective.all_gather(device, local, rows * self.widths[0], parts)?;
        device.concat_columns(parts, &self.widths, rows, logits)?;
        Ok(logits)
    }

    /// The logits that were computed last.
    pub fn logits(&self) -> Option<&D::Buffer> {
        self.buffers.as_ref().map(|buffers| &buffers.logits)
    }
}
