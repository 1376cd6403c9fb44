//! The CPU backend: `f32` arithmetic over weights in their stored type.
//!
//! Every reduction has sixteen lanes and one order (see `product`, `norm`, `row_attention`), which
//! depends on the operation's shape alone: results have the same bits on every instruction set, for
//! any number of threads and whatever other rows there are.

mod aligned;
mod conv;
mod dense_attention;
mod dispatch;
mod image;
mod kv;
mod lanes;
mod linear;
pub mod math;
mod matrix;
mod norm;
mod pointwise;
mod product;
mod row_attention;
mod sample;
mod scratch;
mod step;
mod threads;
mod transformer;
mod view;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use dispatch::Isa;
pub use kv::Kv;
pub use matrix::Matrix;
pub use step::{RowBatch, Rows};

use aligned::Aligned;
use view::RowsMut;

use crate::{
    Error, Result,
    checkpoint::HostTensor,
    ops::{Device, MatrixPart},
};

/// Positions of one attention split.
pub const KV_SPLIT: usize = 256;

/// The CPU as a device. Work is shared on the current rayon pool; several threads may use it.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    isa: Isa,
}

/// Activations on the heap.
#[derive(Debug, Clone)]
pub struct Buffer(Aligned);

impl Cpu {
    /// The CPU with its best instruction set.
    pub fn new() -> Self {
        Self::with_isa(Isa::detect())
    }

    /// The CPU, restricted to an instruction set.
    pub fn with_isa(isa: Isa) -> Self {
        Self { isa }
    }

    /// The instruction set in use; its display form names it in the numerics fingerprint.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

/// Refuses a call of `op` unless `got >= needed`.
fn need(op: &str, what: &str, got: usize, needed: usize) -> Result<()> {
    if got >= needed {
        return Ok(());
    }
    Err(mismatch(
        op,
        format!("{what} has {got} values, {needed} needed"),
    ))
}

/// A call of `op` with sizes that do not agree.
fn mismatch(op: &str, reason: String) -> Error {
    Error::Unsupported {
        what: op.to_owned(),
        reason,
    }
}

impl Device for Cpu {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Vector = Vec<f32>;

    fn buffer(&self, len: usize) -> Result<Buffer> {
        Ok(Buffer(Aligned::zeros(len)))
    }

    fn upload(&self, values: &[f32]) -> Result<Buffer> {
        Ok(Buffer(Aligned::copy(values)))
    }

    fn download(&self, buffer: &Buffer) -> Result<Vec<f32>> {
        Ok(buffer.0.to_vec())
    }

    fn read(&self, buffer: &Buffer, len: usize) -> Result<Vec<f32>> {
        need("read", "buffer", buffer.0.len(), len)?;
        Ok(buffer.0[..len].to_vec())
    }

    fn write(&self, values: &[f32], buffer: &mut Buffer) -> Result<()> {
        need("write", "buffer", buffer.0.len(), values.len())?;
        buffer.0[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn copy_rows(
        &self,
        src: &Buffer,
        src_row: usize,
        dst: &mut Buffer,
        dst_row: usize,
        rows: usize,
        width: usize,
    ) -> Result<()> {
        need("copy_rows", "src", src.0.len(), (src_row + rows) * width)?;
        need("copy_rows", "dst", dst.0.len(), (dst_row + rows) * width)?;
        dst.0[dst_row * width..][..rows * width]
            .copy_from_slice(&src.0[src_row * width..][..rows * width]);
        Ok(())
    }

    fn matrix(&self, parts: &[MatrixPart]) -> Result<Matrix> {
        Matrix::new(parts)
    }

    fn vector(&self, parts: &[HostTensor]) -> Result<Vec<f32>> {
        Ok(parts.iter().flat_map(HostTensor::to_f32).collect())
    }

    fn linear(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        bias: Option<&Vec<f32>>,
        out: &mut Buffer,
    ) -> Result<()> {
        let (outs, cols) = (w.rows(), w.cols());
        need("linear", "x", x.0.len(), rows * cols)?;
        need("linear", "out", out.0.len(), rows * outs)?;
        if let Some(bias) = bias {
            need("linear", "bias", bias.len(), outs)?;
        }
        linear::linear(
            self.isa,
            view::Rows::new(&x.0, cols, rows, cols),
            w,
            std::slice::from_ref(&(0..cols)),
            bias.map(|bias| &bias[..outs]),
            RowsMut::new(&mut out.0, outs, rows, outs),
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
