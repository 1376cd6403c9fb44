//! Attention of single queries over the paged cache.
//!
//! Positions are read in splits of [`KV_SPLIT`] from position 0. A split has its own maximum, sum
//! (in lanes over its positions) and weighted values (in ascending position); splits are merged in
//! order. A query's result so depends on its own sequence alone.

#![allow(unsafe_code, reason = "threads write to disjoint parts of the output")]

use std::ops::Range;

use super::{
    KV_SPLIT, RowBatch,
    dispatch::{Isa, Kernel},
    kv::{Kv, Place},
    lanes::{LANES, Lanes},
    math,
    matrix::Weights,
    product::Product,
    threads,
    view::{Rows, RowsMut},
};

/// Inputs of an attention; sizes are checked.
pub(super) struct RowAttention<'a> {
    /// `[rows, (heads + 2·kv_heads)·d]`, of which the queries are read.
    pub qkv: &'a [f32],
    pub rows: &'a RowBatch,
    pub kv_head_of: &'a [usize],
    pub window: Option<usize>,
    pub layer: usize,
    pub kv: &'a Kv,
}

impl RowAttention<'_> {
    /// Writes `[rows, heads·d]`.
    pub(super) fn run(&self, isa: Isa, out: &mut [f32]) {
        let Self { qkv, rows, kv, .. } = *self;
        let (dim, block_size) = (kv.layout.head_dim, kv.layout.block_size);
        let heads = self.kv_head_of.len();
        let width = (heads + 2 * kv.layout.kv_heads) * dim;
        // A task is a row and a K/V head: the heads that read it go through the splits together.
        let readers: Vec<Vec<usize>> = (0..kv.layout.kv_heads)
            .map(|kv_head| {
                (0..heads)
                    .filter(|&head| self.kv_head_of[head] == kv_head)
                    .collect()
            })
            .collect();
        let work: usize = rows
            .positions
            .iter()
            .map(|&p| (p as usize + 1) * heads * dim * 2)
            .sum();
        let out = RowsMut::new(out, dim, rows.len() * heads, dim);
        threads::for_each(rows.len() * readers.len(), work, |task| {
            let (row, kv_head) = (task / readers.len(), task % readers.len());
            let last = rows.positions[row] as usize;
            let first = self
                .window
                .map_or(0, |window| (last + 1).saturating_sub(window));
            let table = &rows.tables[rows.tables_index[row] as usize];
            let blocks: Vec<Place> = table[..=last / block_size]
                .iter()
                .map(|&block| kv.block(self.layer, block, kv_head))
                .collect();
            let readers = &readers[kv_head];
            let queries: Vec<f32> = readers
                .iter()
                .flat_map(|&head| &qkv[row * width + head * dim..][..dim])
                .copied()
                .collect();
            let queries = Rows::new(&queries, dim, readers.len(), dim);
            let mut heads: Vec<Head> = readers
                .iter()
                .map(|&head| Head {
                    kv,
                    blocks: &blocks,
                    largest: f32::NEG_INFINITY,
                    sum: 0.0,
                    // SAFETY: every head of every row is in one task, once.
                    out: unsafe {
                        let cell = row * heads + head;
                        out.share(cell..cell + 1, 0..dim)
                    },
                })
                .collect();
            let mut scores = vec![0.0; heads.len() * KV_SPLIT];
            for split in first / KV_SPLIT..=last / KV_SPLIT {
                let start = split * KV_SPLIT;
                let seen = first.max(start)..(last + 1).min(start + KV_SPLIT);
                scores.fill(f32::NEG_INFINITY);
                for (block, positions) in by_block(seen.clone(), block_size) {
                    let keys = kv.keys(blocks[block], block_size);
                    let keys = &keys[positions.start % block_size * dim..];
                    let scores = &mut scores[positions.start - start..];
                    isa.run(Product {
                        x: queries,
                        w: Weights::F32(Rows::new(keys, dim, positions.len(), dim)),
                        chunks: std::slice::from_ref(&(0..dim)),
                        bias: None,
                        out: RowsMut::new(scores, KV_SPLIT, readers.len(), positions.len()),
                    });
                }
                for (head, scores) in heads.iter_mut().zip(scores.chunks_exact_mut(KV_SPLIT)) {
                    isa.run(Split {
                        head,
                        start,
                        seen: seen.clone(),
                        scores,
                    });
                }
            }
            for head in &mut heads {
                let sum = head.sum;
                head.out.row(0).iter_mut().for_each(|out| *out /= sum);
            }
        });
    }
}

/// One query head of one row, over the splits so far.
struct Head<'a> {
    kv: &'a Kv,
    blocks: &'a [Place],
    /// The largest scaled score.
    largest: f32,
    /// The sum of `e^(score - largest)`.
    sum: f32,
    /// The sum of `e^(score - largest) · value`.
    out: RowsMut<'a>,
}

/// The positions `seen` of the split that begins at `start`.
struct Split<'a, 'h> {
    head: &'a mut Head<'h>,
    start: usize,
    seen: Range<usize>,
    /// Unscaled, of all positions of the split; `-inf` for those not seen.
    scores: &'a mut [f32],
}

/// A cached block and which of the positions it holds.
fn by_block(
    positions: Range<usize>,
    block_size: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    (positions.start / block_size..positions.end.div_ceil(block_size)).map(move |block| {
        let start = block * block_size;
        (
            block,
            positions.start.max(start)..positions.end.min(start + block_size),
        )
    })
}

impl Kernel for Split<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self {
            head,
            start,
            seen,
            scores: weights,
        } = self;
        let dim = head.kv.layout.head_dim;
        let (top, sum) = exponentials::<L>(weights, 1.0 / (dim as f32).sqrt());
        if head.largest == f32::NEG_INFINITY {
            head.out.row(0).fill(0.0);
        }
        let largest = if top > head.largest {
            top
        } else {
            head.largest
        };
        let (old, new) = (math::exp(head.largest - largest), math::exp(top - largest));
        head.largest = largest;
        head.sum = head.sum * old + sum * new;
        let mut at = 0;
        while at + 8 * LANES <= dim {
            head.mix::<L, 8>(seen.clone(), start, weights, at, (old, new));
            at += 8 * LANES;
        }
        while at < dim {
            head.mix::<L, 1>(seen.clone(), start, weights, at, (old, new));
            at += LANES;
        }
    }
}

impl Head<'_> {
    /// `out = out · old + Σ weight · value · new` for `N` groups of channels from `at` on.
    #[inline(always)]
    fn mix<L: Lanes, const N: usize>(
        &mut self,
        seen: Range<usize>,
        start: usize,
        weights: &[f32],
        at: usize,
        (old, new): (f32, f32),
    ) {
        let (dim, block_size) = (self.kv.layout.head_dim, self.kv.layout.block_size);
        let mut sums = [L::splat(0.0); N];
        for (block, positions) in by_block(seen, block_size) {
            let values = self.kv.values(self.blocks[block], block_size);
            for position in positions {
                let value = &values[position % block_size * dim..][..dim];
                let weight = L::splat(weights[position - start]);
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = weight.mul_add(L::read(value, at + n * LANES), *sum);
                }
            }
        }
        let out = self.out.row(0);
        for (n, sum) in sums.into_iter().enumerate() {
            let at = at + n * LANES;
            let before = L::read(out, at).mul(L::splat(old));
            sum.mul_add(L::splat(new), before).write(out, at);
        }
    }
}

/// Replaces scores by `e^(score · scale - largest)`; returns the largest scaled score and the sum.
#[inline(always)]
fn exponentials<L: Lanes>(scores: &mut [f32], scale: f32) -> (f32, f32) {
    let scale = L::splat(scale);
    let mut top = L::splat(f32::NEG_INFINITY);
    for at in (0..KV_SPLIT).step_by(LANES) {
        top = L::read(scores, at).mul(scale).max(top);
    }
    let top = top.largest();
    let mut sum = L::splat(0.0);
    for at in (0..KV_SPLIT).step_by(LANES) {
        let score = L::read(scores, at).mul(scale);
        let weight = math::exp_lanes(score.sub(L::splat(top)));
        weight.write(scores, at);
        sum = sum.add(weight);
    }
    (top, sum.sum())
}
