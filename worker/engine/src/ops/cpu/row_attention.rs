//! Attention of single queries over the paged cache.
//!
//! Positions are read in splits of [`KV_SPLIT`] from position 0. A split has its own maximum, sum
//! (in lanes over its positions) and weighted values (in ascending position); splits are merged in
//! order. A query's result so depends on its own sequence alone.

#![allow(unsafe_code)]

use std::ops::Range;

use super::{
    KV_SPLIT,
    dispatch::{Isa, Kernel},
    kv::{Kv, Place},
    lanes::{LANES, Lanes},
    math, threads,
    view::RowsMut,
};
use crate::ops::RowBatch;

/// `out[r]` `[rows, heads·d]` for the queries at the start of each row of `qkv`. Sizes are checked.
pub(super) fn attention(
    isa: Isa,
    qkv: &[f32],
    rows: &RowBatch,
    kv_head_of: &[usize],
    window: Option<usize>,
    layer: usize,
    kv: &Kv,
    out: &mut [f32],
) {
    let dim = kv.layout.head_dim;
    let heads = kv_head_of.len();
    let width = (heads + 2 * kv.layout.kv_heads) * dim;
    let readers: Vec<Vec<usize>> = (0..kv.layout.kv_heads)
        .map(|kv_head| {
            (0..heads)
                .filter(|&head| kv_head_of[head] == kv_head)
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
        let first = window.map_or(0, |window| (last + 1).saturating_sub(window));
        let table = &rows.tables[rows.tables_index[row] as usize];
        let blocks: Vec<Place> = table[..=last / kv.layout.block_size]
            .iter()
            .map(|&block| kv.block(layer, block, kv_head))
            .collect();
        for &head in &readers[kv_head] {
            let cell = row * heads + head;
            // SAFETY: every head of every row is written by one task, one after the other.
            let mut out = unsafe { out.share(cell..cell + 1, 0..dim) };
            isa.run(Head {
                query: &qkv[row * width + head * dim..][..dim],
                kv,
                blocks: &blocks,
                visible: first..last + 1,
                out: out.row(0),
            });
        }
    });
}

/// One query head of one row.
struct Head<'a> {
    query: &'a [f32],
    kv: &'a Kv,
    blocks: &'a [Place],
    visible: Range<usize>,
    out: &'a mut [f32],
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self {
            query,
            kv,
            blocks,
            visible,
            out,
        } = self;
        let (dim, block_size) = (query.len(), kv.layout.block_size);
        let scale = 1.0 / (dim as f32).sqrt();
        let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0);
        for split in visible.start / KV_SPLIT..visible.end.div_ceil(KV_SPLIT) {
            let start = split * KV_SPLIT;
            let seen = visible.start.max(start)..visible.end.min(start + KV_SPLIT);
            let mut scores = [f32::NEG_INFINITY; KV_SPLIT];
            for position in seen.clone() {
                let block = kv.keys(blocks[position / block_size], block_size);
                let key = &block[position % block_size * dim..][..dim];
                let mut dot = L::splat(0.0);
                for at in (0..dim).step_by(LANES) {
                    dot = L::read(query, at).mul_add(L::read(key, at), dot);
                }
                scores[position - start] = dot.sum() * scale;
            }
            let mut top = L::splat(f32::NEG_INFINITY);
            for at in (0..KV_SPLIT).step_by(LANES) {
                top = L::read(&scores, at).max(top);
            }
            let top = top.largest();
            let mut split_sum = L::splat(0.0);
            for at in (0..KV_SPLIT).step_by(LANES) {
                let p = math::exp_lanes(L::read(&scores, at).sub(L::splat(top)));
                p.write(&mut scores, at);
                split_sum = split_sum.add(p);
            }
            let merged = if top > largest { top } else { largest };
            let (old, new) = (math::exp(largest - merged), math::exp(top - merged));
            sum = sum * old + split_sum.sum() * new;
            for at in (0..dim).step_by(LANES) {
                let mut acc = L::splat(0.0);
                for position in seen.clone() {
                    let block = kv.values(blocks[position / block_size], block_size);
                    let value = &block[position % block_size * dim..][..dim];
                    let p = L::splat(scores[position - start]);
                    acc = p.mul_add(L::read(value, at), acc);
                }
                // Nothing has been written before the first split.
                let before = if largest == f32::NEG_INFINITY {
                    L::splat(0.0)
                } else {
                    L::read(out, at).mul(L::splat(old))
                };
                acc.mul_add(L::splat(new), before).write(out, at);
            }
            largest = merged;
        }
        for at in (0..dim).step_by(LANES) {
            L::read(out, at).mul(L::splat(1.0 / sum)).write(out, at);
        }
    }
}
