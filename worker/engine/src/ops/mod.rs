//! The operations that models are written over, implemented once per device.
//!
//! Activations are row-major `[rows, width]` buffers. For one row every reduction has one order,
//! fixed by the operation's shapes alone: a row's result never depends on its neighbours.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

mod image;
mod residual;
mod transformer;

pub use image::{Activation, AttentionShape, ConvShape, ImageOps, Norm};
pub use residual::{Residual, RmsNorm};
use transformer::column_parts;
pub use transformer::{
    ByMode, KvLayout, RowDraw, StepLimits, StepPlan, StepRows, StepWork, TransformerOps,
    VocabularyPart,
};

use std::ops::Range;

use crate::{Result, checkpoint::HostTensor};

/// A rectangle of a stored `[out, in]` weight; a matrix stacks several along `out`.
#[derive(Debug, Clone)]
pub struct MatrixPart {
    /// The stored weight. Dimensions after the first are flattened into `in`.
    pub tensor: HostTensor,
    /// Output rows taken.
    pub rows: Range<usize>,
    /// Input columns taken; equal for all parts of a matrix.
    pub cols: Range<usize>,
}

impl MatrixPart {
    /// All of `tensor`.
    pub fn whole(tensor: HostTensor) -> Self {
        let rows = tensor.shape()[0];
        let cols = tensor.len().checked_div(rows).unwrap_or(0);
        Self {
            tensor,
            rows: 0..rows,
            cols: 0..cols,
        }
    }
}

/// Memory of one device and the dense product, which every model needs.
pub trait Device: Send + Sync + 'static {
    /// Activations, row-major.
    type Buffer: Send + Sync;
    /// A weight `[out, in]` in its stored type.
    type Matrix: Send + Sync;
    /// Per-channel parameters (norm weights, biases).
    type Vector: Send + Sync;

    /// `len` zeros.
    fn buffer(&self, len: usize) -> Result<Self::Buffer>;

    /// A buffer with these values.
    fn upload(&self, values: &[f32]) -> Result<Self::Buffer>;

    /// The values of a buffer.
    fn download(&self, buffer: &Self::Buffer) -> Result<Vec<f32>>;

    /// The first `len` values of a buffer.
    fn read(&self, buffer: &Self::Buffer, len: usize) -> Result<Vec<f32>>;

    /// Replaces the first values of a buffer.
    fn write(&self, values: &[f32], buffer: &mut Self::Buffer) -> Result<()>;

    /// Copies `rows` rows of `width` from `src` (from row `src_row`) to `dst` (from row `dst_row`).
    fn copy_rows(
        &self,
        src: &Self::Buffer,
        src_row: usize,
        dst: &mut Self::Buffer,
        dst_row: usize,
        rows: usize,
        width: usize,
    ) -> Result<()>;

    /// A weight matrix of stacked parts.
    fn matrix(&self, parts: &[MatrixPart]) -> Result<Self::Matrix>;

    /// The concatenation of flattened tensors as a per-channel vector.
    fn vector(&self, parts: &[HostTensor]) -> Result<Self::Vector>;

    /// `out[r, o] = bias[o] + Σ_i x[r, i] · w[o, i]` for `rows` rows.
    fn linear(
        &self,
        x: &Self::Buffer,
        rows: usize,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<()>;
}
