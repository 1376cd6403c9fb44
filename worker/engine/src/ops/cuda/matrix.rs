//! Weights on the device, and products with them: by `kernels/product.cu` on Hopper, by `kernels/linear.cu` elsewhere.

use std::ops::Range;

use cudarc::driver::sys::CUdeviceptr;

use super::{
    Buffer, Cuda, Element, Pending, Vector,
    driver::Memory,
    kernels::Argument,
    mismatch, need, product,
    upload::{HostRows, Staging},
};
use crate::{Result, ops::MatrixPart, parallel::CHUNKS};

/// Columns of a block of a weight packed for `linear.cu`.
const K_BLOCK: usize = 32;
/// Outputs of a tile.
const TILE: usize = 16;
/// Rows up to which a warp makes all rows of its outputs in one chunk.
const FEW_ROWS: usize = 16;
/// Warps of the largest block for many rows, and tiles of outputs it may have.
const MANY_WARPS: usize = 16;
/// Blocks of the ring of a block for many rows.
const RING_BLOCKS: usize = 12;

/// Where the chunks of a product begin and end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chunks {
    columns: Vec<Range<usize>>,
}

impl Chunks {
    /// All columns in one.
    fn whole(cols: usize) -> Self {
        let all = 0..cols;
        Self { columns: vec![all] }
    }

    /// Eight chunks of whole blocks.
    fn of_columns(cols: usize) -> Self {
        let blocks = cols.div_ceil(K_BLOCK);
        let bound = |chunk: usize| (blocks * chunk / CHUNKS * K_BLOCK).min(cols);
        Self {
            columns: (0..CHUNKS).map(|c| bound(c)..bound(c + 1)).collect(),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.columns.len()
    }

    /// First block of `width` columns of each chunk, and the number of blocks.
    pub(super) fn first_blocks(&self, width: usize) -> [i32; CHUNKS + 1] {
        let mut first = [0; CHUNKS + 1];
        let mut blocks = 0;
        for chunk in 0..CHUNKS {
            blocks += self
                .columns
                .get(chunk)
                .map_or(0, |c| c.len().div_ceil(width));
            first[chunk + 1] = blocks as i32;
        }
        first
    }

    pub(super) fn columns(&self, bound: impl Fn(&Range<usize>) -> usize) -> [i32; CHUNKS] {
        std::array::from_fn(|chunk| self.columns.get(chunk).map_or(0, |c| bound(c) as i32))
    }

    /// Whether chunks are whole blocks that follow each other, and rows begin at multiples of
    /// sixteen bytes.
    fn aligned(&self, cols: usize) -> bool {
        let mut next = 0;
        let whole = |c: &Range<usize>| {
            let follows = c.start == next && c.len().is_multiple_of(K_BLOCK);
            next = c.end;
            follows
        };
        cols.is_multiple_of(8) && self.columns.iter().all(whole)
    }
}

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
enum Packing {
    /// As stored, in f32.
    Plain,
    /// For `linear.cu`.
    Operands,
    /// For `product.cu`; whether gates and ups alternate.
    Tiles { gated: bool },
}

/// How `linear_many` cuts a product up.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    /// Tiles of 8 rows of a warp.
    tiles: usize,
    /// Groups of rows of a block.
    groups: usize,
    /// Tiles of 16 outputs of a block, a warp of each group each.
    warps: usize,
    /// Parts of the chunks that different blocks sum.
    shares: usize,
}

/// Dynamic shared memory of a block of `linear_many`.
fn ring_bytes(tiles: usize, groups: usize, warps: usize) -> usize {
    RING_BLOCKS * (1024 * warps + 512 * tiles * groups)
}

/// An embedding table `[entries, width]` on the device.
#[derive(Debug)]
pub struct Table {
    pub(super) memory: Memory,
    pub(super) element: Element,
    pub(super) width: usize,
}

/// `struct Product` of `kernels/linear.cu`.
#[repr(C)]
struct Product {
    w: CUdeviceptr,
    x: CUdeviceptr,
    out: CUdeviceptr,
    bias: CUdeviceptr,
    x_stride: i32,
    rows: i32,
    outs: i32,
    blocks: i32,
    chunks: i32,
    first_block: [i32; CHUNKS + 1],
    first_col: [i32; CHUNKS],
    last_col: [i32; CHUNKS],
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
    blocks: i32,
    chunks: i32,
    first_block: [i32; CHUNKS + 1],
    first_col: [i32; CHUNKS],
    last_col: [i32; CHUNKS],
}

/// `struct Packing` of `kernels/pack.cu`.
#[repr(C)]
struct OperandPacking {
    packed: CUdeviceptr,
    raw: CUdeviceptr,
    first_out: i32,
    outs: i32,
    cols: i32,
    blocks: i32,
    chunks: i32,
    first_block: [i32; CHUNKS + 1],
    first_col: [i32; CHUNKS],
    last_col: [i32; CHUNKS],
}

#[allow(unsafe_code)]
mod layouts {
    // SAFETY: fields and order are those of the kernels' structs.
    unsafe impl super::Argument for super::Product {}
    // SAFETY: as above.
    unsafe impl super::Argument for super::OperandPacking {}
    // SAFETY: as above.
    unsafe impl super::Argument for super::TilePacking {}
}

impl Table {
    pub(super) fn new(cuda: &Cuda, parts: &[MatrixPart]) -> Result<Self> {
        let rows = HostRows::new(parts)?;
        let element = cuda.element();
        let bytes = rows.count() * rows.cols() * element.size();
        let memory = Memory::new(&cuda.context, bytes, "an embedding table")?;
        cuda.upload_rows(&rows, element, 1, |staging| {
            copy_rows(cuda, &staging, &memory)
        })?;
        Ok(Self {
            memory,
            element,
            width: rows.cols(),
        })
    }
}

fn copy_rows(cuda: &Cuda, staging: &Staging<'_>, memory: &Memory) -> Result<()> {
    let offset = staging.first * staging.row_bytes;
    cuda.stream.copy(
        staging.memory,
        0,
        memory,
        offset,
        staging.rows * staging.row_bytes,
    )
}

impl Matrix {
    /// The stacked `parts`, summed as the GPU does it best.
    pub(super) fn new(cuda: &Cuda, parts: &[MatrixPart]) -> Result<Self> {
        let rows = HostRows::new(parts)?;
        let chunks = match Self::tiled(cuda) {
            true => Chunks::whole(rows.cols()),
            false => Chunks::of_columns(rows.cols()),
        };
        Self::packed(cuda, &rows, chunks, 0)
    }

    /// A gate stacked on as many rows of an up projection, if the GPU makes a product of both and the activation at once.
    pub(super) fn gated(cuda: &Cuda, parts: &[MatrixPart; 2]) -> Result<Self> {
        let rows = HostRows::new(parts)?;
        let gates = parts[0].rows.len();
        if !Self::tiled(cuda) || parts[1].rows.len() != gates {
            return Self::new(cuda, parts);
        }
        Self::packed(cuda, &rows, Chunks::whole(rows.cols()), gates)
    }

    /// Whether weights are read by `product.cu`.
    fn tiled(cuda: &Cuda) -> bool {
        cuda.hopper && cuda.element() == Element::Bf16
    }

    fn packed(cuda: &Cuda, rows: &HostRows<'_>, chunks: Chunks, gates: usize) -> Result<Self> {
        let (outs, cols) = (rows.count(), rows.cols());
        let packing = match (cuda.element(), Self::tiled(cuda)) {
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
        let first_block = chunks.first_blocks(K_BLOCK);
        let blocks = first_block[CHUNKS] as usize;
        let bytes = outs.div_ceil(TILE) * TILE * blocks * K_BLOCK * 2;
        let memory = Memory::new(&cuda.context, bytes, "weights")?;
        cuda.upload_rows(rows, Element::Bf16, TILE, |staging| {
            let packing = OperandPacking {
                packed: memory.address(),
                raw: staging.memory.address(),
                first_out: staging.first as i32,
                outs: staging.rows as i32,
                cols: cols as i32,
                blocks: blocks as i32,
                chunks: chunks.columns.len() as i32,
                first_block,
                first_col: chunks.columns(|c| c.start),
                last_col: chunks.columns(|c| c.end),
            };
            let lanes = staging.rows.div_ceil(TILE) * blocks * 64;
            let grid = [cuda.blocks(lanes), 1, 1];
            cuda.launch("pack", grid, [256, 1], 0, false, &[&packing])
        })?;
        Ok(memory)
    }

    fn tiles(cuda: &Cuda, rows: &HostRows<'_>, chunks: &Chunks, gates: usize) -> Result<Memory> {
        let (outs, cols) = (rows.count(), rows.cols());
        let first_block = chunks.first_blocks(product::TILE);
        let blocks = first_block[CHUNKS] as usize;
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
                blocks: blocks as i32,
                chunks: chunks.count() as i32,
                first_block,
                first_col: chunks.columns(|c| c.start),
                last_col: chunks.columns(|c| c.end),
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
        let columns = chunks.to_vec();
        Self::packed(cuda, &rows, Chunks { columns }, 0)
    }

    pub(super) fn has_chunks(&self, chunks: &[Range<usize>]) -> bool {
        self.chunks.columns == chunks
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

    fn element(&self) -> Element {
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

impl Cuda {
    /// `out[r, o] = bias[o] + Σ_i x[r, i] · w[o, i]` in the order of the weight's chunks.
    pub(super) fn product(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        bias: Option<&Vector>,
        out: &mut Buffer,
    ) -> Result<()> {
        need("linear", "x", x.len, rows * w.cols)?;
        need("linear", "out", out.len, rows * w.outs)?;
        if let Some(bias) = bias {
            need("linear", "bias", bias.len, w.outs)?;
        }
        if x.element != w.element() {
            return Err(mismatch(
                "linear",
                "x is of another type than the weight".into(),
            ));
        }
        if w.is_gated() {
            return Err(mismatch("linear", "the weight is gated".into()));
        }
        out.pending = None;
        if rows == 0 {
            return Ok(());
        }
        if let Packing::Tiles { .. } = w.packing {
            return self.sum_tiles(x, rows, w, bias, out);
        }
        let chunks = w.chunks.columns.len();
        let first_block = w.chunks.first_blocks(K_BLOCK);
        let mut product = Product {
            w: w.memory.address(),
            x: x.memory.address(),
            out: out.memory.address(),
            bias: bias.map_or(0, |bias| bias.memory.address()),
            x_stride: w.cols as i32,
            rows: rows as i32,
            outs: w.outs as i32,
            blocks: first_block[CHUNKS],
            chunks: chunks as i32,
            first_block,
            first_col: w.chunks.columns(|c| c.start),
            last_col: w.chunks.columns(|c| c.end),
        };
        let suffix = out.element.suffix();
        if w.packing == Packing::Plain {
            if out.element != Element::F32 {
                return Err(mismatch(
                    "linear",
                    "out is of another type than the weight".into(),
                ));
            }
            let grid = [w.outs.div_ceil(128), rows, 1];
            return self.launch("linear_plain", grid, [128, 1], 0, true, &[&product]);
        }
        let aligned = w.chunks.aligned(w.cols);
        if rows <= FEW_ROWS || !aligned {
            let tiles = if rows <= 8 { 1 } else { 2 };
            let odd = if aligned { "" } else { "odd_" };
            let name = format!("linear_few{tiles}_{odd}{suffix}");
            let grid = [w.outs.div_ceil(TILE), rows.div_ceil(8 * tiles), 1];
            return self.launch(&name, grid, [32, chunks], 0, true, &[&product]);
        }
        let Tiling {
            tiles,
            groups,
            warps,
            shares,
        } = self.tiling(rows, w);
        let grid = [
            rows.div_ceil(8 * tiles * groups),
            w.outs.div_ceil(TILE * warps),
            shares,
        ];
        let block = [32 * warps, groups];
        let shared = ring_bytes(tiles, groups, warps);
        if shares == 1 {
            let name = format!("linear_many{tiles}_{suffix}");
            return self.launch(&name, grid, block, shared, true, &[&product]);
        }
        let parts = self.workspace(shares * rows * w.outs * 4)?;
        product.out = parts;
        let bias = std::mem::take(&mut product.bias);
        let name = format!("linear_many{tiles}_f32");
        self.launch(&name, grid, block, shared, true, &[&product])?;
        let planes = Pending {
            planes: parts,
            bias,
            count: shares,
            rows,
            width: w.outs,
        };
        self.finish(planes, out)
    }

    /// The product with a weight in tiles. Planes that nobody has added up are left to whoever reads `out`, if that is in f32.
    fn sum_tiles(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        bias: Option<&Vector>,
        out: &mut Buffer,
    ) -> Result<()> {
        if w.chunks.count() == 1 && bias.is_none() && out.element == Element::F32 {
            self.tile_product(x, rows, w, false, out.memory.address())?;
            return Ok(());
        }
        let planes = out.planes(self, w.chunks.count() * out.len * 4)?;
        let pending = Pending {
            planes,
            bias: bias.map_or(0, |bias| bias.memory.address()),
            count: self.tile_product(x, rows, w, false, planes)?,
            rows,
            width: w.outs,
        };
        if out.element == Element::F32 {
            out.pending = Some(pending);
            return Ok(());
        }
        self.finish(pending, out)
    }

    /// Adds planes up into `out`.
    pub(super) fn finish(&self, pending: Pending, out: &Buffer) -> Result<()> {
        let Pending {
            planes,
            bias,
            count,
            rows,
            width,
        } = pending;
        let arguments: [&dyn Argument; 6] = [
            &planes,
            &bias,
            &out.memory.address(),
            &(rows as i32),
            &(width as i32),
            &(count as i32),
        ];
        let name = format!("linear_finish_{}", out.element.suffix());
        let grid = [self.blocks(rows * width), 1, 1];
        self.launch(&name, grid, [256, 1], 0, true, &arguments)
    }

    /// `silu(gate) · up` of a gated weight.
    pub(super) fn gated_product(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        out: &mut Buffer,
    ) -> Result<()> {
        need("linear_gated", "x", x.len, rows * w.cols)?;
        need("linear_gated", "out", out.len, rows * w.outs / 2)?;
        if x.element != Element::Bf16 || out.element != Element::Bf16 {
            return Err(mismatch("linear_gated", "not in bf16".into()));
        }
        if rows == 0 {
            return Ok(());
        }
        self.tile_product(x, rows, w, true, out.memory.address())?;
        Ok(())
    }

    /// How a product of many rows is cut up: of all ways that fit, the one whose last block ends first, were memory shared
    /// evenly among multiprocessors. The bits are the same in every way.
    fn tiling(&self, rows: usize, w: &Matrix) -> Tiling {
        /// Blocks that could be read while a tile's first ones are waited for.
        const START: usize = 8;
        /// The same for a kernel that sums shares, and bytes of partial sums that cost as much as a block.
        const FINISH: usize = 60;
        const FINISH_BYTES: usize = 170_000;
        let eights = rows.div_ceil(8);
        let tiles = eights.clamp(2, 4);
        let groups = match eights.div_ceil(tiles) {
            few @ 1..=3 => few,
            4 => 2,
            _ => 4,
        };
        // GPUs other than those of data centres have less than half of their shared memory.
        let shared = self.kernels.product_shared();
        let fits = |&groups: &usize| ring_bytes(tiles, groups, 2) <= shared;
        let groups = (1..=groups).rev().find(fits).unwrap_or(1);
        let row_tiles = eights.div_ceil(tiles * groups);
        let blocks = w.chunks.first_blocks(K_BLOCK)[CHUNKS] as usize;
        let out_tiles = w.outs.div_ceil(TILE);
        let mut best: Option<(usize, Tiling)> = None;
        let shares = (0..)
            .map(|n| 1 << n)
            .take_while(|&n| n <= w.chunks.columns.len());
        for shares in shares {
            for warps in (2..=MANY_WARPS / groups).rev() {
                if ring_bytes(tiles, groups, warps) > shared {
                    continue;
                }
                let all = row_tiles * out_tiles.div_ceil(warps) * shares;
                let mut cost =
                    all.div_ceil(self.multiprocessors) * (blocks / shares + START) * warps;
                if shares > 1 {
                    cost += FINISH + shares * rows * w.outs * 8 / FINISH_BYTES;
                }
                if best.is_none_or(|(least, _)| cost < least) {
                    let tiling = Tiling {
                        tiles,
                        groups,
                        warps,
                        shares,
                    };
                    best = Some((cost, tiling));
                }
            }
        }
        best.map_or(
            Tiling {
                tiles,
                groups,
                warps: 1,
                shares: 1,
            },
            |(_, tiling)| tiling,
        )
    }
}
