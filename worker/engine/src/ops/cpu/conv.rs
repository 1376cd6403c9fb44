//! Convolution as products with unfolded windows, and nearest-neighbour enlargement.

#![allow(unsafe_code, reason = "threads write to disjoint parts of the output")]

use super::{
    dispatch::Isa,
    matrix::Matrix,
    product::Product,
    threads,
    view::{Rows, RowsMut},
};
use crate::ops::ConvShape;

/// Output positions whose windows are unfolded together.
const WINDOW_BLOCK: usize = 64;

/// `out[position, o]`, sizes checked.
pub(super) fn conv2d(
    isa: Isa,
    x: &[f32],
    shape: ConvShape,
    w: &Matrix,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let (height, width) = shape.output();
    let (positions, outs) = (height * width, w.rows());
    let work = positions * outs * w.cols();
    let out = RowsMut::new(out, outs, positions, outs);
    threads::for_each(positions.div_ceil(WINDOW_BLOCK), work, |task| {
        let block = task * WINDOW_BLOCK..positions.min((task + 1) * WINDOW_BLOCK);
        let mut windows = vec![0.0; block.len() * w.cols()];
        for (position, window) in block.clone().zip(windows.chunks_exact_mut(w.cols())) {
            unfold(x, shape, position / width, position % width, window);
        }
        for (offset, weights) in w.parts() {
            let cols = offset..offset + weights.count();
            isa.run(Product {
                x: Rows::new(&windows, w.cols(), block.len(), w.cols()),
                w: weights,
                chunks: std::slice::from_ref(&(0..w.cols())),
                bias: bias.map(|bias| &bias[cols.clone()]),
                // SAFETY: tasks have different rows, parts have different columns.
                out: unsafe { out.share(block.clone(), cols) },
            });
        }
    });
}

/// The input values under the kernel at one output position: kernel row, kernel column, channel.
fn unfold(x: &[f32], shape: ConvShape, row: usize, col: usize, window: &mut [f32]) {
    let ConvShape {
        channels,
        kernel,
        stride,
        padding,
        ..
    } = shape;
    for (tap, values) in window.chunks_exact_mut(channels).enumerate() {
        let y = (row * stride + tap / kernel).wrapping_sub(padding);
        let x_at = (col * stride + tap % kernel).wrapping_sub(padding);
        if y < shape.height && x_at < shape.width {
            values.copy_from_slice(&x[(y * shape.width + x_at) * channels..][..channels]);
        } else {
            values.fill(0.0);
        }
    }
}

/// `[h·w, channels]` to `[2h·2w, channels]`.
pub(super) fn upsample2x(x: &[f32], width: usize, channels: usize, out: &mut [f32]) {
    let work = out.len();
    threads::for_each_chunk(out, 2 * width * channels, work, |row, out| {
        let x = &x[row / 2 * width * channels..][..width * channels];
        for (x, pair) in x
            .chunks_exact(channels)
            .zip(out.chunks_exact_mut(2 * channels))
        {
            let (left, right) = pair.split_at_mut(channels);
            left.copy_from_slice(x);
            right.copy_from_slice(x);
        }
    });
}
