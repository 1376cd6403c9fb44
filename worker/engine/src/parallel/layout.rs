//! Which part of each weight a rank holds.

use std::ops::Range;

use crate::{Error, Result, checkpoint::BackboneConfig};

/// Chunks of every row-parallel product, whatever the number of ranks.
pub const CHUNKS: usize = 8;

/// One rank of a tensor-parallel group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    rank: usize,
    size: usize,
}

impl Shard {
    /// Rank `rank` of `size`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless `size` is 1, 2, 4 or 8: the fixed tree over [`CHUNKS`] chunks
    /// has a subtree for every rank only then.
    pub fn new(rank: usize, size: usize) -> Result<Self> {
        if !matches!(size, 1 | 2 | 4 | 8) {
            return Err(Error::Unsupported {
                what: format!("tensor-parallel degree {size}"),
                reason: format!(
                    "products are summed as a fixed tree of {CHUNKS} chunks; \
                     only 1, 2, 4 or 8 ranks have a subtree each"
                ),
            });
        }
        assert!(rank < size, "rank {rank} of {size}");
        Ok(Self { rank, size })
    }

    /// The only rank.
    pub fn whole() -> Self {
        Self { rank: 0, size: 1 }
    }

    /// This rank.
    pub fn rank(self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn size(self) -> usize {
        self.size
    }

    /// The chunks of row-parallel products that this rank sums.
    pub fn chunks(self) -> Range<usize> {
        let each = CHUNKS / self.size;
        self.rank * each..(self.rank + 1) * each
    }

    /// This rank's part of `total` vocabulary entries: equal parts but for the last.
    pub fn vocabulary(self, total: usize) -> Range<usize> {
        let each = total.div_ceil(self.size);
        let bound = |rank: usize| (rank * each).min(total);
        bound(self.rank)..bound(self.rank + 1)
    }
}

/// Bounds of chunk `chunk` of `total` columns.
pub fn even_chunk(total: usize, chunk: usize) -> Range<usize> {
    total * chunk / CHUNKS..total * (chunk + 1) / CHUNKS
}

/// Query heads divided into [`CHUNKS`] equal chunks.
///
/// Where the heads do not divide, every K/V group is padded with zero heads to the least size that
/// makes them. The padding is never stored nor computed: a chunk simply has fewer real heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLayout {
    heads: usize,
    group: usize,
    padded_group: usize,
    chunk: usize,
}

impl HeadLayout {
    /// The layout of a configuration whose heads divide by its K/V heads.
    pub fn new(config: &BackboneConfig) -> Self {
        let group = config.heads / config.kv_heads;
        let mut padded_group = group;
        while !(padded_group * config.kv_heads).is_multiple_of(CHUNKS) {
            padded_group += 1;
        }
        let chunk = padded_group * config.kv_heads / CHUNKS;
        Self {
            heads: config.heads,
            group,
            padded_group,
            chunk,
        }
    }

    /// The first real head at or after padded head `padded`.
    fn real(&self, padded: usize) -> usize {
        let (group, member) = (padded / self.padded_group, padded % self.padded_group);
        (group * self.group + member.min(self.group)).min(self.heads)
    }

    /// Real query heads in a range of chunks.
    pub fn query_heads(&self, chunks: Range<usize>) -> Range<usize> {
        self.real(chunks.start * self.chunk)..self.real(chunks.end * self.chunk)
    }

    /// K/V heads that a range of query heads reads; replicated on every rank that needs them.
    pub fn kv_heads(&self, query_heads: &Range<usize>) -> Range<usize> {
        if query_heads.is_empty() {
            return 0..0;
        }
        query_heads.start / self.group..(query_heads.end - 1) / self.group + 1
    }

    /// The K/V head of a query head.
    pub fn kv_head_of(&self, query_head: usize) -> usize {
        query_head / self.group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(heads: usize, kv_heads: usize) -> HeadLayout {
        HeadLayout::new(&BackboneConfig {
            text_vocab: 8,
            mm_vocab: 8,
            image_vocab: 8,
            hidden: 8,
            intermediate: 8,
            layers: 1,
            adapter_layers: 0,
            head_layers: 0,
            heads,
            kv_heads,
            head_dim: 8,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            sliding_window: None,
            max_positions: 8,
        })
    }

    #[test]
    fn published_heads_are_padded_to_32() {
        let layout = layout(28, 4);
        assert_eq!((layout.padded_group, layout.chunk), (8, 4));
        let per_chunk: Vec<_> = (0..8).map(|c| layout.query_heads(c..c + 1)).collect();
        assert_eq!(per_chunk[..4], [0..4, 4..7, 7..11, 11..14]);
        assert_eq!(per_chunk[7], 25..28);
        assert_eq!(layout.kv_heads(&(4..7)), 0..1);
        assert_eq!(layout.kv_heads(&(7..14)), 1..2);
    }

    #[test]
    fn chunks_partition_the_heads_of_any_configuration() {
        for kv_heads in 1..=12 {
            for group in 1..=9 {
                let layout = layout(kv_heads * group, kv_heads);
                for size in [1, 2, 4, 8] {
                    let mut next = 0;
                    for rank in 0..size {
                        let chunks = Shard::new(rank, size).expect("supported").chunks();
                        let heads = layout.query_heads(chunks);
                        assert_eq!(heads.start, next);
                        next = heads.end;
                    }
                    assert_eq!(next, kv_heads * group);
                }
            }
        }
    }

    #[test]
    fn refuses_degrees_without_a_subtree() {
        for size in [0, 3, 5, 6, 7, 16] {
            let refused = Shard::new(0, size);
            let text = refused.expect_err("no subtree").to_string();
            assert!(text.contains(&format!("degree {size}")), "{text}");
        }
    }

    #[test]
    fn vocabulary_parts_cover_everything_once() {
        for total in [1, 7, 256, 1024, 152_064] {
            for size in [1, 2, 4, 8] {
                let parts = (0..size).map(|r| Shard::new(r, size).expect("ok").vocabulary(total));
                let covered: Vec<usize> = parts.flatten().collect();
                assert_eq!(covered, (0..total).collect::<Vec<_>>());
            }
        }
    }
}
