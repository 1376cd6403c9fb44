//! Weights as `kernels/linear.cu` reads them, and the choice among its tilings.

use std::ops::Range;

use cudarc::driver::sys::CUdeviceptr;

use super::{
    Buffer, Cuda, Element, Vector,
    driver::Memory,
    kernels::Argument,
    mismatch, need,
    upload::{HostRows, Staging},
};
use crate::{Result, ops::MatrixPart, parallel::CHUNKS};

/// Columns of a block of a packed weight.
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
    /// Eight chunks of whole blocks.
    pub(super) fn of_columns(cols: usize) -> Self {
        let blocks = cols.div_ceil(K_BLOCK);
        let bound = |chunk: usize| (blocks * chunk / CHUNKS * K_BLOCK).min(cols);
        Self {
            columns: (0..CHUNKS).map(|c| bound(c)..bound(c + 1)).collect(),
        }
    }

    /// First block of each chunk, and the number of blocks.
    fn first_blocks(&self) -> [i32; CHUNKS + 1] {
        let mut first = [0; CHUNKS + 1];
        let mut blocks = 0;
        for chunk in 0..CHUNKS {
            blocks += self
                .columns
                .get(chunk)
                .map_or(0, |c| c.len().div_ceil(K_BLOCK));
            first[chunk + 1] = blocks as i32;
        }
        first
    }

    fn columns(&self, bound: impl Fn(&Range<usize>) -> usize) -> [i32; CHUNKS] {
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
    element: Element,
    outs: usize,
    cols: usize,
    chunks: Chunks,
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

/// `struct Packing` of `kernels/pack.cu`.
#[repr(C)]
struct Packing {
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
    unsafe impl super::Argument for super::Packing {}
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
    /// The stacked `parts`, to be summed in `chunks`.
    pub(super) fn new(cuda: &Cuda, parts: &[MatrixPart], chunks: Chunks) -> Result<Self> {
        let rows = HostRows::new(parts)?;
        let (outs, cols, element) = (rows.count(), rows.cols(), cuda.element());
        let first_block = chunks.first_blocks();
        let blocks = first_block[CHUNKS] as usize;
        let memory = match element {
            Element::F32 => {
                let memory = Memory::new(&cuda.context, outs * cols * 4, "weights")?;
                cuda.upload_rows(&rows, element, 1, |staging| {
                    copy_rows(cuda, &staging, &memory)
                })?;
                memory
            }
            Element::Bf16 => {
                let bytes = outs.div_ceil(TILE) * TILE * blocks * K_BLOCK * 2;
                let memory = Memory::new(&cuda.context, bytes, "weights")?;
                cuda.upload_rows(&rows, element, TILE, |staging| {
                    let packing = Packing {
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
                memory
            }
        };
        Ok(Self {
            memory,
            element,
            outs,
            cols,
            chunks,
        })
    }

    /// The part of a row-parallel weight that is summed in these ranges of its columns.
    pub(super) fn in_chunks(
        cuda: &Cuda,
        part: &MatrixPart,
        chunks: &[Range<usize>],
    ) -> Result<Self> {
        let inside = |c: &Range<usize>| c.start <= c.end && c.end <= part.cols.len();
        if !chunks.len().is_power_of_two() || chunks.len() > CHUNKS || !chunks.iter().all(inside) {
            let reason = format!("chunks {chunks:?} of {} columns", part.cols.len());
            return Err(mismatch("linear_chunked", reason));
        }
        let columns = chunks.to_vec();
        Self::new(cuda, std::slice::from_ref(part), Chunks { columns })
    }

    pub(super) fn has_chunks(&self, chunks: &[Range<usize>]) -> bool {
        self.chunks.columns == chunks
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
        if x.element != w.element {
            return Err(mismatch(
                "linear",
                "x is of another type than the weight".into(),
            ));
        }
        if rows == 0 {
            return Ok(());
        }
        let chunks = w.chunks.columns.len();
        let first_block = w.chunks.first_blocks();
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
        if w.element == Element::F32 {
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
        let shares = shares as i32;
        let arguments: [&dyn Argument; 6] = [
            &parts,
            &bias,
            &out.memory.address(),
            &product.rows,
            &product.outs,
            &shares,
        ];
        let name = format!("linear_finish_{suffix}");
        self.launch(
            &name,
            [self.blocks(rows * w.outs), 1, 1],
            [256, 1],
            0,
            true,
            &arguments,
        )
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
        let blocks = w.chunks.first_blocks()[CHUNKS] as usize;
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
