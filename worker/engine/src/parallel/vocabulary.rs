//! Embedding tables and heads, split by vocabulary entry.

use std::ops::Range;

use super::{Collective, Shard, linear::ColumnParallel};
use crate::{
    Result,
    checkpoint::HostTensor,
    ops::{Device, MatrixPart, TransformerOps},
};

/// The text and the multimodal embedding table, one after the other.
pub struct VocabularyEmbedding<D: Device> {
    table: D::Matrix,
    text: Range<usize>,
    multimodal: Range<usize>,
    text_vocab: usize,
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
        let text = shard.vocabulary(text_vocab);
        let multimodal = shard.vocabulary(multimodal_table.shape()[0]);
        let table = device.matrix(&[
            MatrixPart {
                rows: text.clone(),
                ..MatrixPart::whole(text_table)
            },
            MatrixPart {
                rows: multimodal.clone(),
                ..MatrixPart::whole(multimodal_table)
            },
        ])?;
        Ok(Self {
            table,
            text,
            multimodal,
            text_vocab,
            width,
        })
    }

    /// The row of this rank's table that holds `token`.
    fn local_row(&self, token: u32) -> Option<u32> {
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

    /// `out` `[tokens, width]`, the same on every rank. Every token is in exactly one rank's table,
    /// so the sum over ranks is exact.
    pub fn forward(
        &self,
        device: &D,
        collective: &mut dyn Collective<D>,
        parts: &mut [D::Buffer],
        tokens: &[u32],
        out: &mut D::Buffer,
    ) -> Result<()> {
        let rows: Vec<Option<u32>> = tokens.iter().map(|&token| self.local_row(token)).collect();
        device.embed(&self.table, &rows, out)?;
        if collective.size() > 1 {
            let len = tokens.len() * self.width;
            collective.all_gather(device, out, len, parts)?;
            device.tree_sum(parts, len, out)?;
        }
        Ok(())
    }
}

/// An output head without bias, `[vocab, width]`.
pub struct VocabularyHead<D: Device> {
    linear: ColumnParallel<D>,
    /// Entries held by each rank.
    widths: Vec<usize>,
}

impl<D: TransformerOps> VocabularyHead<D> {
    /// This rank's part of the first `vocab` entries of `weight`.
    pub fn load(device: &D, shard: Shard, weight: HostTensor, vocab: usize) -> Result<Self> {
        let linear = ColumnParallel::load(device, &[(weight, shard.vocabulary(vocab))], &[])?;
        let part = |rank| Shard::new(rank, shard.size()).map(|s| s.vocabulary(vocab).len());
        Ok(Self {
            linear,
            widths: (0..shard.size()).map(part).collect::<Result<_>>()?,
        })
    }

    /// Entries of all ranks.
    pub fn vocab(&self) -> usize {
        self.widths.iter().sum()
    }

    /// Logits `[rows, vocab]` of `x` `[rows, width]`, the same on every rank.
    pub fn forward(
        &self,
        device: &D,
        collective: &mut dyn Collective<D>,
        x: &D::Buffer,
        rows: usize,
    ) -> Result<D::Buffer> {
        // Ranks send equal lengths, so the last one's part is padded to the first one's.
        let len = rows * self.widths[0];
        let mut local = device.buffer(len)?;
        self.linear.forward(device, x, rows, &mut local)?;
        if collective.size() == 1 {
            return Ok(local);
        }
        let mut parts = self
            .widths
            .iter()
            .map(|_| device.buffer(len))
            .collect::<Result<Vec<_>>>()?;
        collective.all_gather(device, &local, len, &mut parts)?;
        let mut logits = device.buffer(rows * self.vocab())?;
        device.concat_columns(&parts, &self.widths, rows, &mut logits)?;
        Ok(logits)
    }
}
