//! Products on Hopper: the choice among the kernels of `kernels/product.cu`.

use super::{
    Buffer, Cuda, Element, Pending, RowScales, Vector, chunks::ChunkTable, driver::TensorMap,
    kernels::Argument, matrix::Matrix, mismatch, need,
};
use crate::{Result, parallel::CHUNKS};

/// Outputs of a tile and columns of a block.
pub(super) const TILE: usize = 64;
/// Bytes of a tile's block.
const TILE_BYTES: usize = TILE * TILE * 2;
/// Values of which the copy engine's reads are multiples.
const COPIED_TOGETHER: usize = 8;
/// Rows up to which a kernel has registers for two chunks.
const FOLD_ROWS: usize = 128;
/// Rows up to which two warpgroups compute, and beyond which three do.
const NARROW_ROWS: usize = 128;
/// Registers of a thread that the kernels for more are launched with, or else they wait for ever.
const WIDE_REGISTERS: usize = 128;

/// `struct Product` of `kernels/product.cu`.
#[repr(C)]
struct Product {
    w: u64,
    out: u64,
    scales: RowScales,
    rows: i32,
    outs: i32,
    tiles: i32,
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

/// What a kernel makes of its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// One plane a chunk.
    Plain,
    /// One plane for two chunks.
    Fold,
    /// The activation of a gated weight.
    Gated,
}

/// A kernel: variant, rows that it makes at once, slots of its two rings.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    name: &'static str,
    variant: Variant,
    rows: usize,
    weights: usize,
    inputs: usize,
}

/// As `PRODUCT` of `kernels/product.cu` has them.
const fn kernel(
    name: &'static str,
    variant: Variant,
    rows: usize,
    weights: usize,
    inputs: usize,
) -> Kernel {
    Kernel {
        name,
        variant,
        rows,
        weights,
        inputs,
    }
}

/// The kernels of `kernels/product.cu`, for few rows first.
const KERNELS: [Kernel; 19] = [
    kernel("product_8", Variant::Plain, 8, 24, 16),
    kernel("product_8_fold", Variant::Fold, 8, 24, 16),
    kernel("product_8_gated", Variant::Gated, 8, 24, 16),
    kernel("product_16", Variant::Plain, 16, 22, 14),
    kernel("product_16_fold", Variant::Fold, 16, 22, 14),
    kernel("product_16_gated", Variant::Gated, 16, 22, 14),
    kernel("product_32", Variant::Plain, 32, 20, 10),
    kernel("product_32_fold", Variant::Fold, 32, 20, 10),
    kernel("product_32_gated", Variant::Gated, 32, 20, 10),
    kernel("product_64", Variant::Plain, 64, 18, 6),
    kernel("product_64_fold", Variant::Fold, 64, 16, 8),
    kernel("product_64_gated", Variant::Gated, 64, 18, 6),
    kernel("product_128", Variant::Plain, 128, 14, 6),
    kernel("product_128_fold", Variant::Fold, 128, 12, 7),
    kernel("product_128_gated", Variant::Gated, 128, 14, 6),
    kernel("product_192", Variant::Plain, 192, 12, 5),
    kernel("product_192_gated", Variant::Gated, 192, 12, 5),
    kernel("product_256", Variant::Plain, 256, 12, 4),
    kernel("product_256_gated", Variant::Gated, 256, 12, 4),
];

impl Kernel {
    /// The kernel of `variant` that makes `rows` rows at once, or else the one that makes most.
    fn of(variant: Variant, rows: usize) -> Option<Self> {
        let mut found = None;
        for kernel in KERNELS.iter().filter(|kernel| kernel.variant == variant) {
            found = Some(*kernel);
            if kernel.rows >= rows {
                break;
            }
        }
        found
    }

    /// That of a product with `w` and `rows` rows, which are yet to be scaled or not.
    fn for_product(w: &Matrix, rows: usize, scaled: bool) -> Result<Self> {
        let variant = match (w.is_gated(), w.chunks().count()) {
            (true, _) => Variant::Gated,
            // Half as many planes to write and to read. Scaled sums are not those of scaled chunks.
            (false, CHUNKS) if rows <= FOLD_ROWS && !scaled => Variant::Fold,
            _ => Variant::Plain,
        };
        Self::of(variant, rows)
            .ok_or_else(|| mismatch("linear", format!("no kernel for {variant:?}")))
    }

    /// Chunks of a plane.
    fn fold(self) -> usize {
        match self.variant {
            Variant::Fold => 2,
            Variant::Plain | Variant::Gated => 1,
        }
    }

    /// Threads of a block: two warpgroups and three warps, or three warpgroups and one that leaves them its registers.
    const fn threads(self) -> usize {
        match self.rows > NARROW_ROWS {
            true => 512,
            false => 352,
        }
    }

    /// Dynamic shared memory: the rings, their barriers, and room to align them.
    const fn shared(self) -> usize {
        self.weights * TILE_BYTES
            + self.inputs * self.rows * TILE * 2
            + 16 * (self.weights + self.inputs + 1)
            + 1024
    }
}

/// Kernels that have to be launched with so many registers a thread.
pub(super) fn registers() -> impl Iterator<Item = (&'static str, usize)> {
    let wide = KERNELS.iter().filter(|kernel| kernel.rows > NARROW_ROWS);
    wide.map(|kernel| (kernel.name, WIDE_REGISTERS))
}

/// Kernels with dynamic shared memory, and how much.
pub(super) fn shared() -> impl Iterator<Item = (&'static str, usize)> {
    KERNELS.iter().map(|kernel| (kernel.name, kernel.shared()))
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
            self.tile_product(x, rows, w, out.memory.address())?;
            return Ok(());
        }
        let planes = out.room(self, w.chunks().count() * out.len * 4)?;
        let pending = Pending {
            planes,
            bias: bias.map_or(0, |bias| bias.memory.address()),
            count: self.tile_product(x, rows, w, planes)?,
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
        self.tile_product(x, rows, w, out.memory.address())?;
        Ok(())
    }

    /// The product with a weight in tiles of [`TILE`], as planes that are yet to be added up, or, of a gated weight, as
    /// activations. `out` has room for them. Returns the number of planes.
    fn tile_product(&self, x: &Buffer, rows: usize, w: &Matrix, out: u64) -> Result<usize> {
        let count = w.chunks().count();
        let scales = x.row_scales("linear", rows, w.cols())?;
        let kernel = Kernel::for_product(w, rows, scales != RowScales::NONE)?;
        let fold = kernel.fold();
        let tiles = w.outs().div_ceil(TILE);
        let (map, chunks) = self.input(x, rows, w, kernel.rows)?;
        let product = Product {
            w: w.address(),
            out,
            scales,
            rows: rows as i32,
            outs: w.outs() as i32,
            tiles: tiles as i32,
            chunks,
        };
        let grid = [self.multiprocessors.min(tiles * count / fold), 1, 1];
        self.launch_as(
            || format!("{} ({}×{})", kernel.name, w.outs(), w.cols()),
            kernel.name,
            grid,
            [kernel.threads(), 1],
            kernel.shared(),
            true,
            &[&product, &map],
        )?;
        Ok(count / fold)
    }

    /// `x` as the copy engine reads it, and where its chunks begin.
    fn input(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        box_rows: usize,
    ) -> Result<(TensorMap, ChunkTable)> {
        let (mut chunks, cols) = (w.chunks().table(TILE), w.cols());
        let readable = |&column: &i32| (column as usize).is_multiple_of(COPIED_TOGETHER);
        if cols.is_multiple_of(COPIED_TOGETHER) && chunks.first_col.iter().all(readable) {
            let map = TensorMap::new(x.memory.address(), rows, cols, box_rows)?;
            return Ok((map, chunks));
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
        Ok((TensorMap::new(to, rows, stride, box_rows)?, chunks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_go_by_rows() {
        let name = |variant, rows| Kernel::of(variant, rows).map(|kernel| kernel.name);
        assert_eq!(name(Variant::Plain, 1), Some("product_8"));
        assert_eq!(name(Variant::Fold, 17), Some("product_32_fold"));
        assert_eq!(name(Variant::Fold, 400), Some("product_128_fold"));
        assert_eq!(name(Variant::Gated, 160), Some("product_192_gated"));
        assert_eq!(name(Variant::Gated, 512), Some("product_256_gated"));
    }

    #[test]
    fn rings_fit_into_a_multiprocessor() {
        for kernel in KERNELS {
            // With the scales of its rows.
            assert!(kernel.shared() + 4 * kernel.rows <= 227 << 10, "{kernel:?}");
        }
    }
}
