//! Attention over whole sequences, for encoders and diffusion transformers.
//!
//! Scores are dot products over the channels, their softmax sums in lanes over the positions, and
//! outputs are dot products over the positions; see [`super::product`] for the order.

#![allow(unsafe_code, reason = "threads write to disjoint parts of the output")]

use super::{
    dispatch::{Isa, Kernel},
    lanes::{LANES, Lanes},
    math,
    matrix::Weights,
    product::Product,
    threads,
    view::{Rows, RowsMut},
};
use crate::ops::AttentionShape;

/// Queries of a task.
const QUERY_BLOCK: usize = 64;

/// Inputs, each `[batch·len, heads·head_dim]`, sizes checked.
pub(super) struct DenseAttention<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub shape: AttentionShape,
    pub scale: f32,
    /// `[heads, len, len]`.
    pub bias: Option<&'a [f32]>,
    pub causal: bool,
}

impl DenseAttention<'_> {
    /// Writes `[batch·len, heads·head_dim]`.
    pub(super) fn run(&self, isa: Isa, out: &mut [f32]) {
        let AttentionShape {
            batch,
            len,
            heads,
            head_dim,
        } = self.shape;
        let width = heads * head_dim;
        let work = batch * heads * len * len * head_dim * 2;
        // [batch, heads, head_dim, len]
        let mut values = vec![0.0; batch * len * width];
        threads::for_each_chunk(
            &mut values,
            head_dim * len,
            batch * len * width,
            |i, values| {
                let first = i / heads * len * width + i % heads * head_dim;
                for (c, channel) in values.chunks_exact_mut(len).enumerate() {
                    for (position, value) in channel.iter_mut().enumerate() {
                        *value = self.v[first + position * width + c];
                    }
                }
            },
        );
        let out = RowsMut::new(out, width, batch * len, width);
        let blocks = len.div_ceil(QUERY_BLOCK);
        threads::for_each(batch * heads * blocks, work, |task| {
            let (sequence, block) = (task / blocks, task % blocks);
            let (b, head) = (sequence / heads, sequence % heads);
            let queries = block * QUERY_BLOCK..len.min((block + 1) * QUERY_BLOCK);
            // Later positions are invisible to all queries of the block.
            let visible = if self.causal { queries.end } else { len };
            let first = b * len * width + head * head_dim;
            let values = &values[sequence * head_dim * len..][..head_dim * len];
            let mut scores = vec![0.0; queries.len() * visible];
            isa.run(Product {
                x: Rows::new(
                    &self.q[first + queries.start * width..],
                    width,
                    queries.len(),
                    head_dim,
                ),
                w: Weights::F32(Rows::new(&self.k[first..], width, visible, head_dim)),
                chunks: std::slice::from_ref(&(0..head_dim)),
                bias: None,
                out: RowsMut::new(&mut scores, visible, queries.len(), visible),
            });
            for (query, scores) in queries.clone().zip(scores.chunks_exact_mut(visible)) {
                let seen = if self.causal { query + 1 } else { len };
                let bias = self
                    .bias
                    .map(|bias| &bias[(head * len + query) * len..][..seen]);
                let (scores, unseen) = scores.split_at_mut(seen);
                isa.run(Softmax {
                    scores,
                    scale: self.scale,
                    bias,
                });
                unseen.fill(0.0);
            }
            // SAFETY: tasks have different rows or columns.
            let out = unsafe {
                out.share(
                    b * len + queries.start..b * len + queries.end,
                    head * head_dim..(head + 1) * head_dim,
                )
            };
            isa.run(Product {
                x: Rows::new(&scores, visible, queries.len(), visible),
                w: Weights::F32(Rows::new(values, len, head_dim, visible)),
                chunks: std::slice::from_ref(&(0..visible)),
                bias: None,
                out,
            });
        });
    }
}

/// `softmax(scores · scale + bias)` in place.
struct Softmax<'a> {
    scores: &'a mut [f32],
    scale: f32,
    bias: Option<&'a [f32]>,
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self {
            scores,
            scale,
            bias,
        } = self;
        let scale = L::splat(scale);
        let mut largest = L::splat(f32::NEG_INFINITY);
        for at in (0..scores.len()).step_by(LANES) {
            let mut score = L::read(scores, at);
            score = match bias {
                None => score.mul(scale),
                Some(bias) => score.mul_add(scale, L::read(bias, at)),
            };
            score.write(scores, at);
            largest = L::read_or(scores, at, f32::NEG_INFINITY).max(largest);
        }
        let largest = L::splat(largest.largest());
        let mut sum = L::splat(0.0);
        for at in (0..scores.len()).step_by(LANES) {
            let p = L::read_or(scores, at, f32::NEG_INFINITY).sub(largest);
            let p = math::exp_lanes(p);
            p.write(scores, at);
            sum = sum.add(p);
        }
        let inverse = L::splat(1.0 / sum.sum());
        for at in (0..scores.len()).step_by(LANES) {
            L::read(scores, at).mul(inverse).write(scores, at);
        }
    }
}
