//! Products with weight matrices, shared between threads by outputs.

#![allow(unsafe_code, reason = "threads write to disjoint parts of the output")]

use std::ops::Range;

use super::{
    dispatch::Isa,
    matrix::Matrix,
    product::{COL_BLOCK, Product},
    threads,
    view::{Rows, RowsMut},
};

/// `out = x · wᵀ + bias`; see [`Product`] for `chunks`. Sizes agree.
pub(super) fn linear(
    isa: Isa,
    x: Rows<'_, f32>,
    w: &Matrix,
    chunks: &[Range<usize>],
    bias: Option<&[f32]>,
    out: RowsMut<'_>,
) {
    for (offset, weights) in w.parts() {
        let outs = weights.count();
        let work = x.count() * outs * x.cols();
        threads::for_each(outs.div_ceil(COL_BLOCK), work, |task| {
            let cols = task * COL_BLOCK..outs.min((task + 1) * COL_BLOCK);
            let w = weights.slice(cols.clone());
            let cols = offset + cols.start..offset + cols.end;
            let bias = bias.map(|bias| &bias[cols.clone()]);
            // SAFETY: tasks have different columns, and `out` is not used in between.
            let out = unsafe { out.share(0..x.count(), cols) };
            isa.run(Product {
                x,
                w,
                chunks,
                bias,
                out,
            });
        });
    }
}
