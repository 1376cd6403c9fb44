//! Linear layers split across ranks. They own both their shard rule and their exchange.

use std::ops::Range;

use super::{Collective, RowProduct, SumRoom};
use crate::{
    Result,
    checkpoint::HostTensor,
    ops::{Device, MatrixPart, Residual, StepRows, TransformerOps},
};

/// A linear layer whose outputs are split: each rank holds some rows of the weight and makes its
/// own outputs, with no exchange.
pub struct ColumnParallel<D: Device> {
    /// `None` on a rank without outputs.
    weight: Option<D::Matrix>,
    bias: Option<D::Vector>,
}

/// Chunks that the columns of a weight with few outputs may be summed in.
const NARROW_CHUNKS: usize = 4;
/// Columns of which chunks are made.
const NARROW_BLOCK: usize = 64;

impl<D: TransformerOps> ColumnParallel<D> {
    /// [`ColumnParallel::load`] for a weight whose outputs are too few to keep a device busy: it may sum chunks of its columns
    /// at a time.
    pub fn load_narrow(
        device: &D,
        weights: &[(HostTensor, Range<usize>)],
        biases: &[(HostTensor, Range<usize>)],
    ) -> Result<Self> {
        Self::load_with(device, weights, biases, |parts| {
            let cols = parts[0].cols.len();
            let blocks = cols.div_ceil(NARROW_BLOCK);
            let bound = |chunk: usize| (blocks * chunk / NARROW_CHUNKS * NARROW_BLOCK).min(cols);
            let chunks: Vec<_> = (0..NARROW_CHUNKS).map(|c| bound(c)..bound(c + 1)).collect();
            device.matrix_in_chunks(parts, &chunks)
        })
    }
}

impl<D: Device> ColumnParallel<D> {
    /// Stacks the given output ranges of several weights (and of their biases, all or none given).
    pub fn load(
        device: &D,
        weights: &[(HostTensor, Range<usize>)],
        biases: &[(HostTensor, Range<usize>)],
    ) -> Result<Self> {
        Self::load_with(device, weights, biases, |parts| device.matrix(parts))
    }

    fn load_with(
        device: &D,
        weights: &[(HostTensor, Range<usize>)],
        biases: &[(HostTensor, Range<usize>)],
        matrix: impl FnOnce(&[MatrixPart]) -> Result<D::Matrix>,
    ) -> Result<Self> {
        let part = |(tensor, rows): &(HostTensor, Range<usize>)| MatrixPart {
            rows: rows.clone(),
            ..MatrixPart::whole(tensor.clone())
        };
        let parts: Vec<MatrixPart> = weights
            .iter()
            .filter(|(_, rows)| !rows.is_empty())
            .map(part)
            .collect();
        let bias = match biases {
            [] => None,
            _ => Some(device.vector(&biases.iter().map(slice).collect::<Vec<_>>())?),
        };
        let weight = match parts.len() {
            0 => None,
            _ => Some(matrix(&parts)?),
        };
        Ok(Self { weight, bias })
    }

    /// `out` `[rows, width]` from `x` `[rows, in]`.
    pub fn forward(
        &self,
        device: &D,
        x: &D::Buffer,
        rows: usize,
        out: &mut D::Buffer,
    ) -> Result<()> {
        match &self.weight {
            Some(weight) => device.linear(x, rows, weight, self.bias.as_ref(), out),
            None => Ok(()),
        }
    }
}

/// The gate and the up projection of an MLP, split by channel, with the activation between them.
pub struct GatedParallel<D: Device> {
    /// `None` on a rank without channels.
    weight: Option<D::Matrix>,
    width: usize,
}

impl<D: TransformerOps> GatedParallel<D> {
    /// The given channels of both weights.
    pub fn load(
        device: &D,
        gate: HostTensor,
        up: HostTensor,
        channels: Range<usize>,
    ) -> Result<Self> {
        let width = channels.len();
        let part = |tensor| MatrixPart {
            rows: channels.clone(),
            ..MatrixPart::whole(tensor)
        };
        let weight = match width {
            0 => None,
            _ => Some(device.gated_matrix(part(gate), part(up))?),
        };
        Ok(Self { weight, width })
    }

    /// This rank's part of both weights, if it has channels.
    pub fn weight(&self) -> Option<&D::Matrix> {
        self.weight.as_ref()
    }

    /// Channels of this rank.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `out` `[rows, width]` from `x` `[rows, in]`; `scratch` has room for `[rows, 2 · width]`.
    pub fn forward(
        &self,
        device: &D,
        x: &D::Buffer,
        rows: usize,
        scratch: &mut D::Buffer,
        out: &mut D::Buffer,
    ) -> Result<()> {
        match &self.weight {
            Some(weight) => device.linear_gated(x, rows, weight, self.width, scratch, out),
            None => Ok(()),
        }
    }
}

fn slice((tensor, range): &(HostTensor, Range<usize>)) -> HostTensor {
    HostTensor::from_f32(
        tensor.name(),
        &[range.len()],
        &tensor.to_f32()[range.clone()],
    )
}

/// A linear layer whose inputs are split: each rank holds some chunks of columns, sums each alone,
/// and the ranks finish the tree over all chunks together.
pub struct RowParallel<D: Device> {
    /// `None` on a rank without inputs.
    weight: Option<D::Matrix>,
    /// Column ranges of this rank's chunks, counted from its first column.
    chunks: Vec<Range<usize>>,
}

/// Buffers of sums, shared by all row-parallel layers of a model.
pub struct SumBuffers<D: Device> {
    /// This rank's sums `[rows, width]`.
    partial: D::Buffer,
    /// Those of all ranks.
    room: SumRoom<D>,
    /// What a rank without inputs adds.
    zeros: D::Buffer,
}

impl<D: Device> SumBuffers<D> {
    /// Room for `values` values from each of `ranks` ranks.
    pub fn new(device: &D, values: usize, ranks: usize) -> Result<Self> {
        // A rank alone exchanges nothing.
        let shared = |len| device.buffer(if ranks == 1 { 1 } else { len });
        Ok(Self {
            partial: device.buffer(values)?,
            room: SumRoom {
                all: shared(ranks * values)?,
                sum: shared(values)?,
            },
            zeros: shared(values)?,
        })
    }
}

impl<D: TransformerOps> RowParallel<D> {
    /// This rank's chunks of a weight `[out, in]`: adjacent column ranges.
    pub fn load(device: &D, weight: HostTensor, chunks: &[Range<usize>]) -> Result<Self> {
        let first = chunks.first().map_or(0, |chunk| chunk.start);
        let last = chunks.last().map_or(first, |chunk| chunk.end);
        let part = MatrixPart {
            cols: first..last,
            ..MatrixPart::whole(weight)
        };
        let chunks: Vec<_> = chunks
            .iter()
            .map(|c| c.start - first..c.end - first)
            .collect();
        let weight = if first == last {
            None
        } else {
            Some(device.matrix_in_chunks(std::slice::from_ref(&part), &chunks)?)
        };
        Ok(Self { weight, chunks })
    }

    /// Adds the product with this rank's columns of `x` to a residual stream, the same on every rank.
    pub fn forward(
        &self,
        device: &D,
        collective: &mut dyn Collective<D>,
        buffers: &mut SumBuffers<D>,
        x: &D::Buffer,
        to: Residual<'_, D>,
    ) -> Result<()> {
        let SumBuffers {
            partial,
            room,
            zeros,
        } = buffers;
        let chunks = &self.chunks;
        match &self.weight {
            Some(weight) if collective.size() == 1 => {
                device.linear_chunked(x, to.rows.len(), weight, chunks, partial)?;
                device.residual(Some(partial), to)
            }
            Some(weight) => {
                let product = RowProduct { x, weight, chunks };
                collective.sum_product_into(device, product, partial, room, to)
            }
            None => collective.sum_into(device, zeros, room, to),
        }
    }
}
