//! Dot products of rows with weight rows: the kernel under every matrix product.
//!
//! A dot product has sixteen lanes. Lane `l` sums the columns `≡ l (mod 16)`, counted from the
//! first, by fused multiply-add in ascending order; missing columns are zeros; the lanes are added
//! by [`Lanes::sum`]. The tilings below only choose which dot products advance together, so the
//! bits of a result do not depend on them.

#![allow(unsafe_code, reason = "kernels read and write through pointers")]

use std::ops::Range;

use super::{
    aligned::Aligned,
    dispatch::Kernel,
    lanes::{Element, LANES, Lanes},
    matrix::Weights,
    scratch::Scratch,
    view::{Rows, RowsMut},
};

/// Rows up to which weights are read straight from where they are stored; short dot products read
/// them there for any number of rows.
const DIRECT_ROWS: usize = 16;
/// Rows that one block of converted weights serves.
const ROW_BLOCK: usize = 64;
/// Rows of a register tile.
const TILE_ROWS: usize = 4;
/// Outputs of a register tile.
const TILE_COLS: usize = 6;
/// Outputs whose accumulators are kept together; the unit of work of a thread.
pub(super) const COL_BLOCK: usize = 8 * TILE_COLS;
/// Columns of a converted block of weights (24 KiB or less, to stay in the first-level cache).
const DEPTH_BLOCK: usize = 512;

/// `out[r, o] = bias[o] + Σ x[r, i] · w[o, i]`, on the calling thread.
///
/// Each range of `chunks` is a dot product of its own; the chunk sums, a power of two of them, are
/// added as a balanced binary tree.
pub(super) struct Product<'a> {
    /// `[rows, in]`.
    pub x: Rows<'a, f32>,
    /// `[out, in]`.
    pub w: Weights<'a>,
    /// Column ranges.
    pub chunks: &'a [Range<usize>],
    /// `[out]`.
    pub bias: Option<&'a [f32]>,
    /// `[rows, out]`.
    pub out: RowsMut<'a>,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        match self.w {
            Weights::F32(w) => Typed { p: self, w }.run::<L>(),
            Weights::Bf16(w) => Typed { p: self, w }.run::<L>(),
        }
    }
}

struct Typed<'a, E> {
    p: Product<'a>,
    w: Rows<'a, E>,
}

/// A rectangle of dot products in progress.
struct Block<'a, E> {
    x: Rows<'a, f32>,
    w: Rows<'a, E>,
}

impl<E: Element> Typed<'_, E> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { mut p, w } = self;
        let (rows, outs) = (p.x.count(), w.count());
        assert!(p.x.cols() == w.cols() && p.out.count() == rows && p.out.cols() == outs);
        assert!(p.bias.is_none_or(|bias| bias.len() == outs));
        assert!(p.chunks.len().is_power_of_two());
        assert!(
            p.chunks
                .iter()
                .all(|c| c.start <= c.end && c.end <= w.cols())
        );
        let mut scratch = Scratch::take();
        for first_row in (0..rows).step_by(ROW_BLOCK) {
            let block_rows = first_row..rows.min(first_row + ROW_BLOCK);
            for first_col in (0..outs).step_by(COL_BLOCK) {
                let block_cols = first_col..outs.min(first_col + COL_BLOCK);
                let cells = block_rows.len() * block_cols.len();
                let block = Block {
                    x: p.x.slice(block_rows.clone()),
                    w: w.slice(block_cols.clone()),
                };
                let Scratch {
                    sums,
                    accumulators,
                    panel,
                } = &mut *scratch;
                let sums = sums.at_least(p.chunks.len() * cells);
                for (chunk, sums) in p.chunks.iter().zip(sums.chunks_exact_mut(cells)) {
                    if rows <= DIRECT_ROWS || chunk.len() <= DEPTH_BLOCK {
                        block.direct::<L>(chunk.clone(), sums);
                    } else {
                        block.panels::<L>(chunk.clone(), sums, accumulators, panel);
                    }
                }
                add_tree(sums, cells, p.chunks.len());
                for (r, sums) in block_rows.clone().zip(sums.chunks_exact(block_cols.len())) {
                    let out = &mut p.out.row(r)[block_cols.clone()];
                    match p.bias {
                        None => out.copy_from_slice(sums),
                        Some(bias) => {
                            for ((out, sum), bias) in
                                out.iter_mut().zip(sums).zip(&bias[block_cols.clone()])
                            {
                                *out = sum + bias;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Adds `parts` (a power of two) runs of `len` values as a balanced tree into the first run.
pub(super) fn add_tree(values: &mut [f32], len: usize, parts: usize) {
    let mut step = 1;
    while step < parts {
        for left in (0..parts).step_by(2 * step) {
            let (head, tail) = values.split_at_mut((left + step) * len);
            for (a, b) in head[left * len..].iter_mut().zip(&tail[..len]) {
                *a += *b;
            }
        }
        step *= 2;
    }
}

impl<E: Element> Block<'_, E> {
    /// Few rows: memory decides, so weights are converted in registers as they stream by.
    #[inline(always)]
    fn direct<L: Lanes>(&self, chunk: Range<usize>, sums: &mut [f32]) {
        if self.x.count() == 1 {
            return self.direct_cols::<L, 8>(chunk, sums);
        }
        self.direct_cols::<L, 4>(chunk, sums);
    }

    #[inline(always)]
    fn direct_cols<L: Lanes, const N: usize>(&self, chunk: Range<usize>, sums: &mut [f32]) {
        let outs = self.w.count();
        let whole = outs / N * N;
        for first in (0..whole).step_by(N) {
            self.direct_rows::<L, N>(chunk.clone(), first, sums);
        }
        for first in whole..outs {
            self.direct_rows::<L, 1>(chunk.clone(), first, sums);
        }
    }

    #[inline(always)]
    fn direct_rows<L: Lanes, const N: usize>(
        &self,
        chunk: Range<usize>,
        first: usize,
        sums: &mut [f32],
    ) {
        let rows = self.x.count();
        for row in (0..rows).step_by(TILE_ROWS) {
            match rows - row {
                1 => self.direct_tile::<L, 1, N>(chunk.clone(), row, first, sums),
                2 => self.direct_tile::<L, 2, N>(chunk.clone(), row, first, sums),
                3 => self.direct_tile::<L, 3, N>(chunk.clone(), row, first, sums),
                _ => self.direct_tile::<L, 4, N>(chunk.clone(), row, first, sums),
            }
        }
    }

    /// Rows `row..row + M` with outputs `first..first + N`.
    #[inline(always)]
    fn direct_tile<L: Lanes, const M: usize, const N: usize>(
        &self,
        chunk: Range<usize>,
        row: usize,
        first: usize,
        sums: &mut [f32],
    ) {
        assert!(row + M <= self.x.count() && first + N <= self.w.count());
        let (groups, rest) = (chunk.len() / LANES, chunk.len() % LANES);
        // SAFETY: `M` rows and the outputs `first..first + N` exist, and the chunk is inside them.
        let acc = unsafe {
            let w = self.w.as_ptr().add(first * self.w.stride() + chunk.start);
            let x = self.x.as_ptr().add(row * self.x.stride() + chunk.start);
            let start = [[L::splat(0.0); N]; M];
            advance::<L, E, M, N, true>(start, (x, self.x.stride()), (w, self.w.stride()), groups)
        };
        // The last columns, if they are no whole group.
        let rest_from = chunk.start + groups * LANES;
        let mut ws = [L::splat(0.0); N];
        for (n, lanes) in ws.iter_mut().enumerate() {
            let w = &self.w.row(first + n)[rest_from..chunk.end];
            // SAFETY: `w` has `rest` elements.
            *lanes = unsafe { E::load_part(w.as_ptr(), rest) };
        }
        for (m, acc) in acc.into_iter().enumerate() {
            let x = L::read(&self.x.row(row + m)[rest_from..chunk.end], 0);
            for (n, acc) in acc.into_iter().enumerate() {
                // Not even adding zeros leaves the bits of -0 alone.
                let acc = if rest > 0 { x.mul_add(ws[n], acc) } else { acc };
                sums[(row + m) * self.w.count() + first + n] = acc.sum();
            }
        }
    }

    /// Many rows: arithmetic decides, so a block of weights is converted once for all rows.
    #[inline(always)]
    fn panels<L: Lanes>(
        &self,
        chunk: Range<usize>,
        sums: &mut [f32],
        accumulators: &mut Aligned,
        panel: &mut Aligned,
    ) {
        let (rows, outs) = (self.x.count(), self.w.count());
        let panels = outs.div_ceil(TILE_COLS);
        let of_row = TILE_COLS * LANES;
        let accumulators = accumulators.at_least(panels * rows * of_row);
        let panel = panel.at_least(TILE_COLS * DEPTH_BLOCK);
        accumulators.fill(0.0);
        for depth in chunk.clone().step_by(DEPTH_BLOCK) {
            let depth = depth..chunk.end.min(depth + DEPTH_BLOCK);
            for (index, acc) in accumulators.chunks_exact_mut(rows * of_row).enumerate() {
                let first = index * TILE_COLS;
                for (n, panel) in panel.chunks_exact_mut(DEPTH_BLOCK).enumerate() {
                    // Outputs that do not exist repeat the last one.
                    let row = self.w.row((first + n).min(outs - 1));
                    convert::<L, E>(&row[depth.clone()], panel);
                }
                for (tile, acc) in acc.chunks_mut(TILE_ROWS * of_row).enumerate() {
                    let row = tile * TILE_ROWS;
                    // SAFETY: the tile's rows exist, `depth` is inside them, and the panel holds
                    // six rows of `DEPTH_BLOCK` values, of which `depth` are used.
                    unsafe {
                        let x = self.x.as_ptr().add(row * self.x.stride() + depth.start);
                        let x = (x, self.x.stride());
                        let w = panel.as_ptr();
                        if L::WIDE {
                            match acc.len() / of_row {
                                4 => resume::<L, 4>(acc, x, w, depth.len()),
                                3 => resume::<L, 3>(acc, x, w, depth.len()),
                                2 => resume::<L, 2>(acc, x, w, depth.len()),
                                _ => resume::<L, 1>(acc, x, w, depth.len()),
                            }
                        } else {
                            for (m, acc) in acc.chunks_exact_mut(of_row).enumerate() {
                                resume::<L, 1>(acc, (x.0.add(m * x.1), x.1), w, depth.len());
                            }
                        }
                    }
                }
            }
        }
        for (index, acc) in accumulators.chunks_exact(rows * of_row).enumerate() {
            let first = index * TILE_COLS;
            for (row, acc) in acc.chunks_exact(of_row).enumerate() {
                let sums = &mut sums[row * outs..][first..outs.min(first + TILE_COLS)];
                for (sum, acc) in sums.iter_mut().zip(acc.chunks_exact(LANES)) {
                    *sum = L::read(acc, 0).sum();
                }
            }
        }
    }
}

/// Converts weights to `f32`; the last group is filled up with zeros.
#[inline(always)]
fn convert<L: Lanes, E: Element>(weights: &[E], panel: &mut [f32]) {
    for (weights, panel) in weights.chunks(LANES).zip(panel.chunks_exact_mut(LANES)) {
        // SAFETY: a chunk has `len` elements, sixteen or fewer.
        let lanes: L = unsafe {
            if weights.len() == LANES {
                E::load(weights.as_ptr())
            } else {
                E::load_part(weights.as_ptr(), weights.len())
            }
        };
        lanes.write(panel, 0);
    }
}

/// Advances `M` rows of stored accumulators against a panel.
///
/// # Safety
/// As for [`advance`], with `N = TILE_COLS` and the panel's stride.
#[inline(always)]
unsafe fn resume<L: Lanes, const M: usize>(
    stored: &mut [f32],
    x: (*const f32, usize),
    panel: *const f32,
    depth: usize,
) {
    assert!(stored.len() == M * TILE_COLS * LANES);
    let mut acc = [[L::splat(0.0); TILE_COLS]; M];
    for (m, acc) in acc.iter_mut().enumerate() {
        for (n, acc) in acc.iter_mut().enumerate() {
            *acc = L::read(stored, (m * TILE_COLS + n) * LANES);
        }
    }
    // SAFETY: as the caller promises.
    let acc = unsafe {
        advance::<L, f32, M, TILE_COLS, false>(acc, x, (panel, DEPTH_BLOCK), depth / LANES)
    };
    for (m, acc) in acc.iter().enumerate() {
        for (n, acc) in acc.iter().enumerate() {
            acc.write(stored, (m * TILE_COLS + n) * LANES);
        }
    }
    let (whole, rest) = (depth / LANES * LANES, depth % LANES);
    if rest > 0 {
        for (m, stored) in stored.chunks_exact_mut(TILE_COLS * LANES).enumerate() {
            // SAFETY: as the caller promises.
            let x = unsafe { L::load_part(x.0.add(m * x.1 + whole), rest) };
            for (n, stored) in stored.chunks_exact_mut(LANES).enumerate() {
                // SAFETY: as above; a panel's last group is whole.
                let w = unsafe { L::load(panel.add(n * DEPTH_BLOCK + whole)) };
                x.mul_add(w, L::read(stored, 0)).write(stored, 0);
            }
        }
    }
}

/// `acc[m][n] + x[m] · w[n]` lane by lane over `groups` of sixteen columns. Rows are given by the
/// first element and the stride. With `STREAM`, the next `N` weight rows are fetched meanwhile.
///
/// # Safety
/// `M` rows of `x` and `N` rows of `w` are valid for reading `groups` groups.
#[inline(always)]
unsafe fn advance<L: Lanes, E: Element, const M: usize, const N: usize, const STREAM: bool>(
    mut acc: [[L; N]; M],
    (x, x_stride): (*const f32, usize),
    (w, w_stride): (*const E, usize),
    groups: usize,
) -> [[L; N]; M] {
    for group in 0..groups {
        if STREAM && group % 2 == 0 {
            for n in 0..N {
                L::prefetch(w.wrapping_add((N + n) * w_stride + group * LANES).cast());
            }
        }
        let mut ws = [L::splat(0.0); N];
        for (n, lanes) in ws.iter_mut().enumerate() {
            // SAFETY: row `n` has the group.
            *lanes = unsafe { E::load(w.add(n * w_stride + group * LANES)) };
        }
        for (m, acc) in acc.iter_mut().enumerate() {
            // SAFETY: row `m` has the group.
            let x: L = unsafe { L::load(x.add(m * x_stride + group * LANES)) };
            for (lanes, w) in acc.iter_mut().zip(ws) {
                *lanes = x.mul_add(w, *lanes);
            }
        }
    }
    acc
}
