//! Weights in their stored type, read where the file is mapped.

#![allow(unsafe_code)]

use std::{mem::align_of, ops::Range};

use half::bf16;

use super::view::Rows;
use crate::{
    Error, Result,
    checkpoint::{DType, HostTensor},
    ops::MatrixPart,
};

/// A weight `[out, in]`: rectangles of stored tensors, stacked along `out`.
#[derive(Debug, Clone)]
pub struct Matrix {
    parts: Vec<Part>,
    cols: usize,
}

#[derive(Debug, Clone)]
struct Part {
    tensor: HostTensor,
    stride: usize,
    rows: Range<usize>,
    first_col: usize,
    /// Rows of the parts before this one.
    offset: usize,
}

/// Weight rows of one part.
#[derive(Clone, Copy)]
pub(super) enum Weights<'a> {
    F32(Rows<'a, f32>),
    Bf16(Rows<'a, bf16>),
}

impl Weights<'_> {
    /// Outputs.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::F32(rows) => rows.count(),
            Self::Bf16(rows) => rows.count(),
        }
    }

    /// Some of the outputs.
    pub(super) fn slice(&self, outs: Range<usize>) -> Self {
        match self {
            Self::F32(rows) => Self::F32(rows.slice(outs)),
            Self::Bf16(rows) => Self::Bf16(rows.slice(outs)),
        }
    }
}

impl Matrix {
    /// Stacks `parts`; `f16` and misaligned tensors are copied, others stay where they are.
    pub(super) fn new(parts: &[MatrixPart]) -> Result<Self> {
        let cols = parts.first().map_or(0, |part| part.cols.len());
        let mut offset = 0;
        let mut stacked = Vec::with_capacity(parts.len());
        for part in parts {
            let tensor = &part.tensor;
            let stored = tensor.shape().first().copied().unwrap_or(0);
            let stride = tensor.len().checked_div(stored).unwrap_or(0);
            let inside = |range: &Range<usize>, end| range.start <= range.end && range.end <= end;
            if !inside(&part.rows, stored)
                || !inside(&part.cols, stride)
                || part.cols.len() != cols
                || tensor.bytes().len() != tensor.len() * tensor.dtype().size()
            {
                return Err(Error::checkpoint(
                    tensor.file(),
                    tensor.name(),
                    format!(
                        "rows {:?} and columns {:?} ({cols} wanted) of {:?}",
                        part.rows,
                        part.cols,
                        tensor.shape()
                    ),
                ));
            }
            stacked.push(if readable(tensor) {
                Part {
                    tensor: tensor.clone(),
                    stride,
                    rows: part.rows.clone(),
                    first_col: part.cols.start,
                    offset,
                }
            } else {
                Part {
                    tensor: copy(part, stride),
                    stride: cols,
                    rows: 0..part.rows.len(),
                    first_col: 0,
                    offset,
                }
            });
            offset += part.rows.len();
        }
        Ok(Self {
            parts: stacked,
            cols,
        })
    }

    /// Outputs.
    pub(super) fn rows(&self) -> usize {
        self.parts
            .last()
            .map_or(0, |part| part.offset + part.rows.len())
    }

    /// Inputs.
    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// The weights part by part, each with its first output.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, Weights<'_>)> {
        self.parts
            .iter()
            .map(|part| (part.offset, part.weights(self.cols)))
    }

    /// Row `index` as `f32`; `out` is one row long.
    pub(super) fn read_row(&self, index: usize, out: &mut [f32]) {
        let part = self.parts.partition_point(|part| part.offset <= index) - 1;
        let part = &self.parts[part];
        let row = index - part.offset;
        match part.weights(self.cols) {
            Weights::F32(rows) => out.copy_from_slice(rows.row(row)),
            Weights::Bf16(rows) => {
                for (value, word) in out.iter_mut().zip(rows.row(row)) {
                    *value = word.to_f32();
                }
            }
        }
    }
}

impl Part {
    fn weights(&self, cols: usize) -> Weights<'_> {
        let first = self.rows.start * self.stride + self.first_col;
        match self.tensor.dtype() {
            DType::Bf16 => {
                let values = elements::<bf16>(&self.tensor)
                    .get(first..)
                    .unwrap_or_default();
                Weights::Bf16(Rows::new(values, self.stride, self.rows.len(), cols))
            }
            DType::F32 | DType::F16 => {
                let values = elements::<f32>(&self.tensor)
                    .get(first..)
                    .unwrap_or_default();
                Weights::F32(Rows::new(values, self.stride, self.rows.len(), cols))
            }
        }
    }
}

/// Whether the kernels can read `tensor` in place.
fn readable(tensor: &HostTensor) -> bool {
    let address = tensor.bytes().as_ptr().addr();
    let aligned = match tensor.dtype() {
        DType::F32 => address.is_multiple_of(align_of::<f32>()),
        DType::Bf16 => address.is_multiple_of(align_of::<bf16>()),
        DType::F16 => false,
    };
    aligned && cfg!(target_endian = "little")
}

/// The rectangle of a part as a tensor of its own.
fn copy(part: &MatrixPart, stride: usize) -> HostTensor {
    let values = part.tensor.to_f32();
    let rectangle: Vec<f32> = part
        .rows
        .clone()
        .flat_map(|row| &values[row * stride..][part.cols.clone()])
        .copied()
        .collect();
    let shape = [part.rows.len(), part.cols.len()];
    HostTensor::from_f32(part.tensor.name(), &shape, &rectangle)
}

/// A stored element type whose every bit pattern is a value.
trait Plain {}
impl Plain for f32 {}
impl Plain for bf16 {}

/// The elements of a tensor that is [`readable`], in place.
fn elements<T: Plain>(tensor: &HostTensor) -> &[T] {
    // SAFETY: every bit pattern is a value of a `Plain` type; `align_to` sees to the alignment.
    let (_, elements, _) = unsafe { tensor.bytes().align_to::<T>() };
    elements
}
