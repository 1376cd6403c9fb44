//! Weights on the device, packed for the kernels that read them: `kernels/product.cu` on Hopper, `kernels/linear.cu` elsewhere.

use std::ops::Range;

use cudarc::driver::sys::CUdeviceptr;

use super::{
    Cuda, Element,
    chunks::{ChunkTable, Chunks},
    driver::Memory,
    kernels::Argument,
    linear::{K_BLOCK, TILE},
    mismatch, product,
    table::copy_rows,
    upload::HostRows,
};
use crate::{Result, ops::MatrixPart, parallel::CHUNKS};

/// A weight `[out, in]` on the device.
#[derive(Debug)]
pub struct Matrix {
    memory: Memory,
    packing: Packing,
    outs: usize,
    cols: usize,
    chunks: Chunks,
}

/// How a weight lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// As stored, in f32.
    Plain,
    /// For `linear.cu`.
    Operands,
    /// For `product.cu`; whether gates and ups alternate.
    Tiles { gated: bool },
}

/// `struct TilePacking` of `kernels/pack.cu`.
#[repr(C)]
struct TilePacking {
    packed: CUdeviceptr,
    raw: CUdeviceptr,
    first_row: i32,
    rows: i32,
    cols: i32,
    gates: i32,
    chunks: ChunkTable,
}

/// `struct Packing` of `kernels/pack.cu`.
#[repr(C)]
struct OperandPacking {
    packed: CUdeviceptr,
    raw: CUdeviceptr,
    first_out: i32,
    outs: i32,
    cols: i32,
    chunks: ChunkTable,
}

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernels' structs.
    unsafe impl super::Argument for super::OperandPacking {}
    // SAFETY: as above.
    unsafe impl super::Argument for super::TilePacking {}
}

impl Matrix {
    /// The stacked `parts`, summed as the GPU does it best.
    pub(super) fn new(cuda: &Cuda, parts: &[MatrixPart]) -> Result<Self> {
        let rows = HostRows::new(parts)?;
        let chunks = match cuda.tiled() {
            true => Chunks::whole(rows.cols()),
            false => Chunks::of_columns(rows.cols(), K_BLOCK),
        };
        Self::packed(cuda, &rows, chunks, 0)
    }

    /// A gate stacked on as many rows of an up projection, if the GPU makes a product of both and the activation at once.
    pub(super) fn gated(cuda: &Cuda, parts: &[MatrixPart; 2]) -> Result<Self> {
        let rows = HostRows::new(parts)?;
        let gates = parts[0].rows.len();
        if !cuda.tiled() || parts[1].rows.len() != gates {
            return Self::new(cuda, parts);
        }
        Self::packed(cuda, &rows, Chunks::whole(rows.cols()), gates)
    }

    fn packed(cuda: &Cuda, rows: &HostRows<'_>, chunks: Chunks, gates: usize) -> Result<Self> {
        let (outs, cols) = (rows.count(), rows.cols());
        let packing = match (cuda.element(), cuda.tiled()) {
            (Element::F32, _) => Packing::Plain,
            (Element::Bf16, false) => Packing::Operands,
            (Element::Bf16, true) => Packing::Tiles { gated: gates > 0 },
        };
        let memory = match packing {
            Packing::Plain => {
                let memory = Memory::new(&cuda.context, outs * cols * 4, "weights")?;
                cuda.upload_rows(rows, Element::F32, 1, |staging| {
                    copy_rows(cuda, &staging, &memory)
                })?;
                memory
            }
            Packing::Operands => Self::operands(cuda, rows, &chunks)?,
            Packing::Tiles { .. } => Self::tiles(cuda, rows, &chunks, gates)?,
        };
        Ok(Self {
            memory,
            packing,
            outs,
            cols,
            chunks,
        })
    }

    fn operands(cuda: &Cuda, rows: &HostRows<'_>, chunks: &Chunks) -> Result<Memory> {
        let (outs, cols) = (rows.count(), rows.cols());
        let table = chunks.table(K_BLOCK);
        let blocks = table.blocks as usize;
        let bytes = outs.div_ceil(TILE) * TILE * blocks * K_BLOCK * 2;
        let memory = Memory::new(&cuda.context, bytes, "weights")?;
        cuda.upload_rows(rows, Element::Bf16, TILE, |staging| {
            let packing = OperandPacking {
                packed: memory.address(),
                raw: staging.memory.address(),
                first_out: staging.first as i32,
                outs: staging.rows as i32,
                cols: cols as i32,
                chunks: table,
            };
            let lanes = staging.rows.div_ceil(TILE) * blocks * 64;
            let grid = [cuda.blocks(lanes), 1, 1];
            cuda.launch("pack", grid, [256, 1], 0, false, &[&packing])
        })?;
        Ok(memory)
    }

    fn tiles(cuda: &Cuda, rows: &HostRows<'_>, chunks: &Chunks, gates: usize) -> Result<Memory> {
        let (outs, cols) = (rows.count(), rows.cols());
        let table = chunks.table(product::TILE);
        let blocks = table.blocks as usize;
        // Tiles are whole: of a gated weight, of gates as well as of ups.
        let padded = match gates {
            0 => outs.next_multiple_of(product::TILE),
            _ => 2 * gates.next_multiple_of(product::TILE / 2),
        };
        let memory = Memory::new(
            &cuda.context,
            padded * blocks * product::TILE * 2,
            "weights",
        )?;
        if padded > outs {
            cuda.stream.zero(&memory)?;
        }
        cuda.upload_rows(rows, Element::Bf16, 1, |staging| {
            let packing = TilePacking {
                packed: memory.address(),
                raw: staging.memory.address(),
                first_row: staging.first as i32,
                rows: staging.rows as i32,
                cols: cols as i32,
                gates: gates as i32,
                chunks: table,
            };
            let grid = [cuda.blocks(staging.rows * blocks * 8), 1, 1];
            cuda.launch("pack_tiles", grid, [256, 1], 0, false, &[&packing])
        })?;
        Ok(memory)
    }

    /// The stacked `parts`, summed in these ranges of their columns.
    pub(super) fn in_chunks(
        cuda: &Cuda,
        parts: &[MatrixPart],
        chunks: &[Range<usize>],
    ) -> Result<Self> {
        let rows = HostRows::new(parts)?;
        let inside = |c: &Range<usize>| c.start <= c.end && c.end <= rows.cols();
        if !chunks.len().is_power_of_two() || chunks.len() > CHUNKS || !chunks.iter().all(inside) {
            let reason = format!("chunks {chunks:?} of {} columns", rows.cols());
            return Err(mismatch("matrix_in_chunks", reason));
        }
        Self::packed(cuda, &rows, Chunks::of(chunks), 0)
    }

    /// Refuses other chunks than those that it was made for.
    pub(super) fn check_chunks(&self, chunks: &[Range<usize>]) -> Result<()> {
        match self.chunks.ranges() == chunks {
            true => Ok(()),
            false => Err(mismatch(
                "linear_chunked",
                format!("the weight was not made for chunks {chunks:?}"),
            )),
        }
    }

    pub(super) fn outs(&self) -> usize {
        self.outs
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    pub(super) fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    pub(super) fn is_gated(&self) -> bool {
        self.packing == Packing::Tiles { gated: true }
    }

    /// Whether `product.cu` makes sums with it.
    pub(super) fn is_tiled(&self) -> bool {
        self.packing == Packing::Tiles { gated: false }
    }

    pub(super) fn packing(&self) -> Packing {
        self.packing
    }

    pub(super) fn element(&self) -> Element {
        match self.packing {
            Packing::Plain => Element::F32,
            _ => Element::Bf16,
        }
    }

    /// Bytes that reading the whole weight moves.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}
