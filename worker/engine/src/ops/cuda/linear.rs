//! Products: by `kernels/product.cu` for weights in its tiles, otherwise by `kernels/linear.cu`, and the choice among the
//! tilings of the latter.

use cudarc::driver::sys::CUdeviceptr;

use super::{
    Buffer, Cuda, Element, Pending, RowScales, Vector,
    chunks::ChunkTable,
    kernels::Argument,
    matrix::{Matrix, Packing},
    mismatch, need,
};
use crate::Result;

/// Columns of a block of a packed weight.
pub(super) const K_BLOCK: usize = 32;
/// Outputs of a tile.
pub(super) const TILE: usize = 16;
/// Rows up to which a warp makes all rows of its outputs in one chunk.
const FEW_ROWS: usize = 16;
/// Warps of the largest block for many rows, and tiles of outputs it may have.
const MANY_WARPS: usize = 16;
/// Blocks of the ring of a block for many rows.
const RING_BLOCKS: usize = 12;

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
    chunks: ChunkTable,
}

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernel's struct.
    unsafe impl super::Argument for super::Product {}
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
        self.check_product(x, rows, w)?;
        need("linear", "out", out.len, rows * w.outs())?;
        if let Some(bias) = bias {
            need("linear", "bias", bias.len, w.outs())?;
        }
        out.hold_values();
        if rows == 0 {
            return Ok(());
        }
        if let Packing::Tiles { .. } = w.packing() {
            return self.sum_tiles(x, rows, w, bias, out);
        }
        if x.scales != RowScales::NONE || x.partials.is_some() {
            let reason = "rows of x are yet to be scaled or folded";
            return Err(mismatch("linear", reason.into()));
        }
        let mut product = Product {
            w: w.address(),
            x: x.memory.address(),
            out: out.memory.address(),
            bias: bias.map_or(0, |bias| bias.memory.address()),
            x_stride: w.cols() as i32,
            rows: rows as i32,
            outs: w.outs() as i32,
            chunks: w.chunks().table(K_BLOCK),
        };
        let suffix = out.element.suffix();
        if w.packing() == Packing::Plain {
            if out.element != Element::F32 {
                return Err(mismatch(
                    "linear",
                    "out is of another type than the weight".into(),
                ));
            }
            let grid = [w.outs().div_ceil(128), rows, 1];
            return self.launch("linear_plain", grid, [128, 1], 0, true, &[&product]);
        }
        let aligned = w.chunks().aligned(w.cols(), K_BLOCK);
        if rows <= FEW_ROWS || !aligned {
            let tiles = if rows <= 8 { 1 } else { 2 };
            let odd = if aligned { "" } else { "odd_" };
            let name = format!("linear_few{tiles}_{odd}{suffix}");
            let grid = [w.outs().div_ceil(TILE), rows.div_ceil(8 * tiles), 1];
            return self.launch(&name, grid, [32, w.chunks().count()], 0, true, &[&product]);
        }
        let Tiling {
            tiles,
            groups,
            warps,
            shares,
        } = self.tiling(rows, w);
        let grid = [
            rows.div_ceil(8 * tiles * groups),
            w.outs().div_ceil(TILE * warps),
            shares,
        ];
        let block = [32 * warps, groups];
        let shared = ring_bytes(tiles, groups, warps);
        if shares == 1 {
            let name = format!("linear_many{tiles}_{suffix}");
            return self.launch(&name, grid, block, shared, true, &[&product]);
        }
        let parts = self.workspace(shares * rows * w.outs() * 4)?;
        product.out = parts;
        let bias = std::mem::take(&mut product.bias);
        let name = format!("linear_many{tiles}_f32");
        self.launch(&name, grid, block, shared, true, &[&product])?;
        let planes = Pending {
            planes: parts,
            bias,
            count: shares,
            rows,
            width: w.outs(),
        };
        self.finish(planes, out)
    }

    /// Refuses what is no product.
    pub(super) fn check_product(&self, x: &Buffer, rows: usize, w: &Matrix) -> Result<()> {
        need("linear", "x", x.len, rows * w.cols())?;
        if x.element != w.element() {
            let reason = "x is of another type than the weight";
            return Err(mismatch("linear", reason.into()));
        }
        match w.is_gated() {
            true => Err(mismatch("linear", "the weight is gated".into())),
            false => Ok(()),
        }
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
        let blocks = w.chunks().table(K_BLOCK).blocks as usize;
        let out_tiles = w.outs().div_ceil(TILE);
        let mut best: Option<(usize, Tiling)> = None;
        let shares = (0..)
            .map(|n| 1 << n)
            .take_while(|&n| n <= w.chunks().count());
        for shares in shares {
            for warps in (2..=MANY_WARPS / groups).rev() {
                if ring_bytes(tiles, groups, warps) > shared {
                    continue;
                }
                let all = row_tiles * out_tiles.div_ceil(warps) * shares;
                let mut cost =
                    all.div_ceil(self.multiprocessors) * (blocks / shares + START) * warps;
                if shares > 1 {
                    cost += FINISH + shares * rows * w.outs() * 8 / FINISH_BYTES;
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
