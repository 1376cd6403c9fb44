//! Products on Hopper, by the kernels of `kernels/product.cu`.

mod kernel;
mod parts;

use kernel::Kernel;
pub(super) use kernel::{FEW_ROWS, registers, shared};
use parts::Parts;

use super::{
    Buffer, Cuda, Element, Pending, RowScales, Vector, ahead::Ahead, attention::Partials,
    chunks::ChunkTable, driver::TensorMap, kernels::Argument, matrix::Matrix, mismatch, need,
    peer::Receivers,
};
use crate::Result;

/// Outputs of a tile and columns of a block.
pub(super) const TILE: usize = 64;
/// Values of which the copy engine's reads are multiples.
const COPIED_TOGETHER: usize = 8;

/// `struct Product` of `kernels/share.cuh`.
#[repr(C)]
struct Product {
    w: u64,
    out: u64,
    receivers: Receivers,
    ahead: Ahead,
    scales: RowScales,
    rows: i32,
    outs: i32,
    tiles: i32,
    parts: Parts,
    /// Of which the kernel takes all but the last columns.
    chunks: ChunkTable,
}

/// `struct Spread` of `kernels/product.cu`.
#[repr(C)]
struct Spread {
    from: u64,
    to: u64,
    rows: i32,
    cols: i32,
    chunks: ChunkTable,
}

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernels' structs.
    unsafe impl super::Argument for super::Product {}
    // SAFETY: as above.
    unsafe impl super::Argument for super::Spread {}
    // SAFETY: a tensor map is what the kernel's parameter is.
    unsafe impl super::Argument for super::TensorMap {}
}

/// Where a kernel finds x.
enum Input {
    /// Where the copy engine does.
    Copied(TensorMap),
    /// In what attention left of one row.
    Left(Partials),
}

impl Input {
    fn argument(&self) -> &dyn Argument {
        match self {
            Self::Copied(map) => map,
            Self::Left(partials) => partials,
        }
    }
}

impl Cuda {
    /// The product with a weight in tiles. Planes that nobody has added up are left to whoever reads `out`, if that is in f32.
    pub(super) fn sum_tiles(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        bias: Option<&Vector>,
        out: &mut Buffer,
    ) -> Result<()> {
        if w.chunks().count() == 1 && bias.is_none() && out.element == Element::F32 {
            self.tile_product(x, rows, w, out.memory.address(), Receivers::NONE)?;
            return Ok(());
        }
        let planes = out.room(self, w.chunks().count() * out.len * 4)?;
        let pending = Pending {
            planes,
            bias: bias.map_or(0, |bias| bias.memory.address()),
            count: self.tile_product(x, rows, w, planes, Receivers::NONE)?,
            rows,
            width: w.outs(),
        };
        if out.element == Element::F32 {
            out.pending = Some(pending);
            return Ok(());
        }
        self.finish(pending, out)
    }

    /// `silu(gate) · up` of a gated weight.
    pub(super) fn gated_product(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        out: &mut Buffer,
    ) -> Result<()> {
        need("linear_gated", "x", x.len, rows * w.cols())?;
        need("linear_gated", "out", out.len, rows * w.outs() / 2)?;
        if x.element != Element::Bf16 || out.element != Element::Bf16 {
            return Err(mismatch("linear_gated", "not in bf16".into()));
        }
        if rows == 0 {
            return Ok(());
        }
        out.hold_values();
        self.tile_product(x, rows, w, out.memory.address(), Receivers::NONE)?;
        Ok(())
    }

    /// The product of at most [`FEW_ROWS`] rows with a weight in tiles, of which no more than one chunk makes a plane, as planes
    /// that `receivers` add up.
    pub(super) fn send_product(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        receivers: Receivers,
    ) -> Result<()> {
        self.check_product(x, rows, w)?;
        self.tile_product(x, rows, w, 0, receivers)?;
        Ok(())
    }

    /// The product with a weight in tiles of [`TILE`], as planes that are yet to be added up, or, of a gated weight, as
    /// activations. `out` has room for them, unless there are `receivers`. Returns the number of planes.
    fn tile_product(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        out: u64,
        receivers: Receivers,
    ) -> Result<usize> {
        let count = w.chunks().count();
        let scales = x.row_scales("linear", rows, w.cols())?;
        let scaled = scales != RowScales::NONE;
        let kernel = Kernel::for_product(w, rows, scaled, self.multiprocessors)?;
        if receivers.any() && !kernel.sends() {
            return Err(mismatch("linear", format!("{} cannot send", kernel.name)));
        }
        let planes = count / kernel.fold();
        let tiles = w.outs().div_ceil(TILE);
        let parts = Parts::new(tiles, count, self.multiprocessors);
        let (kernel, input, chunks) = self.input(x, rows, w, kernel)?;
        let product = Product {
            w: w.address(),
            out,
            receivers,
            ahead: x.ahead,
            scales,
            rows: rows as i32,
            outs: w.outs() as i32,
            tiles: tiles as i32,
            parts,
            chunks,
        };
        let blocks = match kernel.takes_parts() {
            true => parts.blocks as usize * count,
            false => self.multiprocessors.min(tiles * planes * kernel.pieces()),
        };
        let grid = [blocks, 1, 1];
        self.launch_as(
            || format!("{} ({}×{})", kernel.name, w.outs(), w.cols()),
            kernel.name,
            grid,
            [kernel.threads(), 1],
            kernel.shared(),
            true,
            &[&product, input.argument()],
        )?;
        Ok(planes)
    }

    /// `x` as the kernel reads it, or another that makes the same, and where its chunks begin.
    fn input(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        kernel: Kernel,
    ) -> Result<(Kernel, Input, ChunkTable)> {
        let (mut chunks, cols) = (w.chunks().table(TILE), w.cols());
        if let Some(partials) = x.partials {
            if let Some(kernel) = kernel.folding(&chunks).filter(|_| rows == 1) {
                return Ok((kernel, Input::Left(partials), chunks));
            }
            self.fold(partials, x)?;
        }
        let readable = |&column: &i32| (column as usize).is_multiple_of(COPIED_TOGETHER);
        if cols.is_multiple_of(COPIED_TOGETHER) && chunks.first_col.iter().all(readable) {
            let map = TensorMap::new(x.memory.address(), rows, cols, kernel.rows)?;
            return Ok((kernel, Input::Copied(map), chunks));
        }
        let stride = chunks.blocks as usize * TILE;
        // Of as many rows as there can be: memory may not be reserved while other ranks wait.
        let to = self.workspace(x.len / cols * stride * 2)?;
        let spread = Spread {
            from: x.memory.address(),
            to,
            rows: rows as i32,
            cols: cols as i32,
            chunks,
        };
        let grid = [self.blocks(rows * stride), 1, 1];
        self.launch("spread_chunks", grid, [256, 1], 0, true, &[&spread])?;
        for (column, &block) in chunks.first_col.iter_mut().zip(&chunks.first_block) {
            *column = block * TILE as i32;
        }
        let map = TensorMap::new(to, rows, stride, kernel.rows)?;
        Ok((kernel, Input::Copied(map), chunks))
    }
}
