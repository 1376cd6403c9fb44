//! The residual stream, and the norm of it that a block reads.

use super::{Device, TransformerOps};

/// A residual stream that something is added to.
pub struct Residual<'a, O: TransformerOps> {
    /// The stream `[rows, width]`.
    pub h: &'a mut O::Buffer,
    /// Its rows.
    pub rows: &'a O::Rows,
    /// Columns of a row.
    pub width: usize,
    /// Whether only multimodal rows are added to.
    pub multimodal_only: bool,
    /// What is made of the stream then.
    pub norm: Option<RmsNorm<'a, O>>,
}

/// A root-mean-square norm (arXiv 1910.07467) of the rows of a residual stream.
pub struct RmsNorm<'a, D: Device> {
    /// `[width]`.
    pub weight: &'a D::Vector,
    /// What is added to the mean of the squares.
    pub eps: f32,
    /// `[rows, width]` of [`TransformerOps::activations`]. Only products may read it: they apply what a device leaves to them.
    pub out: &'a mut D::Buffer,
}
