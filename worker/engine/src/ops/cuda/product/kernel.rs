//! The kernels of `kernels/product.cu`, and the choice among them.

use Variant::{Gated, Planes};

use super::{TILE, mismatch};
use crate::{
    Result,
    ops::cuda::{Matrix, chunks::ChunkTable},
    parallel::CHUNKS,
};

/// Bytes of a tile's block.
const TILE_BYTES: usize = TILE * TILE * 2;
/// Rows of the kernels for fewest.
pub(in crate::ops::cuda) const FEW_ROWS: usize = 8;
/// Rows up to which warpgroups keep the registers that they are launched with.
const NARROW_ROWS: usize = 128;

/// What a kernel makes of its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// Planes of so many chunks each.
    Planes(usize),
    /// The activation of a gated weight.
    Gated,
}

impl Variant {
    /// Whether a multiprocessor has so few of a product's tiles, of so many chunks, that it waits for slots rather than for memory.
    const fn has_few_tiles(self, tiles: usize, count: usize, multiprocessors: usize) -> bool {
        match self {
            Gated => tiles < 2 * multiprocessors,
            Planes(chunks) => tiles * count / chunks <= multiprocessors,
        }
    }
}

/// A kernel: variant, rows that it makes at once, blocks of columns that its two rings hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub name: &'static str,
    variant: Variant,
    pub rows: usize,
    weights: usize,
    inputs: usize,
    /// Whether slots have more blocks than those of other kernels, for products of which a multiprocessor has few tiles.
    long: bool,
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
        long: false,
    }
}

/// The same with long slots.
const fn long(name: &'static str, variant: Variant) -> Kernel {
    Kernel {
        long: true,
        ..kernel(name, variant, 8, 24, 16)
    }
}

/// The kernels of `kernels/product.cu`, for few rows first.
const KERNELS: [Kernel; 26] = [
    kernel("product_8", Planes(1), 8, 24, 16),
    kernel("product_8_fold", Planes(2), 8, 24, 16),
    kernel("product_8_gated", Gated, 8, 24, 16),
    kernel("product_16", Planes(1), 16, 22, 14),
    kernel("product_16_fold", Planes(2), 16, 22, 14),
    kernel("product_16_gated", Gated, 16, 22, 14),
    kernel("product_32", Planes(1), 32, 20, 10),
    kernel("product_32_fold", Planes(2), 32, 20, 10),
    kernel("product_32_gated", Gated, 32, 20, 10),
    kernel("product_64", Planes(1), 64, 18, 6),
    kernel("product_64_fold", Planes(2), 64, 16, 8),
    kernel("product_64_gated", Gated, 64, 18, 6),
    kernel("product_96", Planes(1), 96, 14, 8),
    kernel("product_96_fold", Planes(2), 96, 12, 9),
    kernel("product_96_gated", Gated, 96, 14, 8),
    kernel("product_128", Planes(1), 128, 14, 6),
    kernel("product_128_fold", Planes(2), 128, 12, 7),
    kernel("product_128_gated", Gated, 128, 14, 6),
    kernel("product_192", Planes(1), 192, 12, 5),
    kernel("product_192_fold", Planes(2), 192, 10, 6),
    kernel("product_192_fold4", Planes(4), 192, 10, 6),
    kernel("product_192_gated", Gated, 192, 12, 5),
    kernel("product_256", Planes(1), 256, 12, 4),
    kernel("product_256_fold", Planes(2), 256, 7, 5),
    kernel("product_256_fold4", Planes(4), 256, 7, 5),
    kernel("product_256_gated", Gated, 256, 12, 4),
];

/// Those for few rows with long slots.
const LONG: [Kernel; 2] = [
    long("product_8_long", Planes(1)),
    long("product_8_gated_long", Gated),
];

/// Those that fold what attention left of one row.
const FOLDING: [Kernel; 3] = [
    kernel("product_1", Planes(1), 8, 24, 16),
    kernel("product_1_fold", Planes(2), 8, 24, 16),
    long("product_1_long", Planes(1)),
];

/// All of them.
fn all() -> impl Iterator<Item = &'static Kernel> {
    KERNELS.iter().chain(&LONG).chain(&FOLDING)
}

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

    /// That of a product with `w` and `rows` rows, which are yet to be scaled or not, on a GPU of so many multiprocessors.
    pub(super) fn for_product(
        w: &Matrix,
        rows: usize,
        scaled: bool,
        multiprocessors: usize,
    ) -> Result<Self> {
        let (tiles, count) = (w.outs().div_ceil(TILE), w.chunks().count());
        let variant = match (w.is_gated(), scaled) {
            (true, _) => Gated,
            // Scaled sums are not those of scaled chunks.
            (false, true) => Planes(1),
            (false, false) => Planes(fold(tiles, count, rows, multiprocessors)),
        };
        let kernel = Self::of(variant, rows)
            .ok_or_else(|| mismatch("linear", format!("no kernel for {variant:?}")))?;
        let few = kernel.rows <= FEW_ROWS && variant.has_few_tiles(tiles, count, multiprocessors);
        let mut long = LONG.into_iter();
        let long = long.find(|long| few && long.variant == variant);
        Ok(long.unwrap_or(kernel))
    }

    /// The one that makes the same of what attention left of one row: it has room for every block of the chunks that it adds.
    pub(super) fn folding(self, chunks: &ChunkTable) -> Option<Self> {
        let same = |of: &&Self| (of.variant, of.long) == (self.variant, self.long);
        let folding = FOLDING.iter().find(same)?;
        let blocks = |chunk| chunks.first_block[chunk + self.fold()] - chunks.first_block[chunk];
        let mut planes = (0..chunks.chunks as usize).step_by(self.fold());
        let fours = chunks.first_col.iter().all(|column| column % 4 == 0);
        let fits = planes.all(|chunk| blocks(chunk) as usize <= folding.inputs);
        (fours && fits).then_some(*folding)
    }

    /// Chunks of a plane.
    pub(super) const fn fold(self) -> usize {
        match self.variant {
            Planes(chunks) => chunks,
            Gated => 1,
        }
    }

    /// Whether it may send planes, a chunk each.
    pub(super) fn sends(self) -> bool {
        self.rows <= FEW_ROWS && self.variant == Planes(1)
    }

    /// Pieces of a tile that blocks may share.
    pub(super) const fn pieces(self) -> usize {
        match self.variant {
            Gated if self.rows <= FEW_ROWS => 4,
            _ => 1,
        }
    }

    /// Whether blocks share a product by [`Parts`](super::parts::Parts).
    pub(super) const fn takes_parts(self) -> bool {
        self.rows > NARROW_ROWS && self.fold() == 1
    }

    /// Threads of a block: two warpgroups and three warps, or, for many rows, three warpgroups, or two if they add chunks, and one that
    /// leaves them its registers.
    pub(super) const fn threads(self) -> usize {
        match (self.rows > NARROW_ROWS, self.takes_parts()) {
            (false, _) => 352,
            (true, true) => 512,
            (true, false) => 384,
        }
    }

    /// Registers of a thread that the kernel must be launched with, or else it waits for ever.
    const fn registers(self) -> Option<usize> {
        match (self.rows > NARROW_ROWS, self.takes_parts()) {
            (false, _) => None,
            (true, true) => Some(128),
            (true, false) => Some(168),
        }
    }

    /// Dynamic shared memory: the rings, their barriers, of which there are most where a slot has one block, and room to align them.
    pub(super) const fn shared(self) -> usize {
        self.weights * TILE_BYTES
            + self.inputs * self.rows * TILE * 2
            + 16 * (self.weights + self.inputs + 1)
            + 1024
    }
}

/// Chunks of a plane, of a product of `rows` rows with `tiles` tiles in `count` chunks: the fewer planes there are, the less is
/// written and read, but no multiprocessor may have to sum more chunks of whole tiles for it. (Parts of tiles save less than planes cost.)
fn fold(tiles: usize, count: usize, rows: usize, multiprocessors: usize) -> usize {
    if rows <= NARROW_ROWS {
        return if count == CHUNKS { 2 } else { 1 };
    }
    let longest = |fold: &usize| (tiles * count / fold).div_ceil(multiprocessors) * fold;
    let folds = [4, 2, 1].into_iter();
    let folds = folds.filter(|&fold| count.is_multiple_of(fold));
    folds.min_by_key(longest).unwrap_or(1)
}

/// Kernels that have to be launched with so many registers a thread.
pub(in crate::ops::cuda) fn registers() -> impl Iterator<Item = (&'static str, usize)> {
    let of = |kernel: &Kernel| Some((kernel.name, kernel.registers()?));
    KERNELS.iter().filter_map(of)
}

/// Kernels with dynamic shared memory, and how much.
pub(in crate::ops::cuda) fn shared() -> impl Iterator<Item = (&'static str, usize)> {
    all().map(|kernel| (kernel.name, kernel.shared()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_go_by_rows() {
        let name = |variant, rows| Kernel::of(variant, rows).map(|kernel| kernel.name);
        assert_eq!(name(Planes(1), 1), Some("product_8"));
        assert_eq!(name(Planes(2), 17), Some("product_32_fold"));
        assert_eq!(name(Planes(4), 400), Some("product_256_fold4"));
        assert_eq!(name(Gated, 160), Some("product_192_gated"));
        assert_eq!(name(Gated, 512), Some("product_256_gated"));
    }

    #[test]
    fn chunks_share_a_plane_where_that_takes_no_longer() {
        assert_eq!(fold(56, 8, 64, 132), 2);
        assert_eq!(fold(56, 4, 64, 132), 1);
        // What ranks of a group have may be sent.
        assert_eq!([1, 2, 4].map(|count| fold(56, count, 8, 132)), [1; 3]);
        assert_eq!(fold(56, 8, 256, 132), 4);
        assert_eq!(fold(56, 4, 256, 132), 2);
        assert_eq!(fold(56, 2, 256, 132), 1);
        assert_eq!(fold(300, 1, 256, 132), 1);
    }

    #[test]
    fn four_ranks_have_few_tiles_and_fewer_ranks_many() {
        let few = |variant: Variant, tiles, count| variant.has_few_tiles(tiles, count, 132);
        // gate+up and o of the 7B, of four ranks, two and one.
        assert_eq!(
            [148, 296, 592].map(|tiles| few(Gated, tiles, 1)),
            [true, false, false]
        );
        assert_eq!(
            [(1, 2), (1, 4), (2, 8)].map(|(fold, count)| few(Planes(fold), 56, count)),
            [true, false, false]
        );
    }

    #[test]
    fn rings_fit_into_a_multiprocessor() {
        for kernel in all() {
            // With the scales of its rows.
            assert!(kernel.shared() + 4 * kernel.rows <= 227 << 10, "{kernel:?}");
        }
    }
}
