//! Dot products of rows with weight rows: the kernel under every matrix product.
//!
//! A dot product has sixteen lanes. Lane `l` sums the columns `≡ l (mod 16)`, counted from the
//! first, by fused multiply-add in ascending order; missing columns are zeros; the lanes are added
//! by [`Lanes::sum`]. The tilings below only choose which dot products advance together, so the
//! bits of a result do not depend on them.

#![allow(unsafe_code)]

use std::ops::Range;

use half::bf16;

use super::{
    dispatch::Kernel,
    lanes::{Element, LANES, Lanes, load_part},
    matrix::Weights,
    scratch::Scratch,
    view::{Rows, RowsMut},
};

/// Rows up to which weights are read straight from where they are stored.
const DIRECT_ROWS: usize = 4;
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
                sums.resize(p.chunks.len() * cells, 0.0);
                for (chunk, sums) in p.chunks.iter().zip(sums.chunks_exact_mut(cells)) {
                    if rows <= DIRECT_ROWS {
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
    /// Few rows: memory decides, so weights stream through registers once.
    #[inline(always)]
    fn direct<L: Lanes>(&self, chunk: Range<usize>, sums: &mut [f32]) {
        match self.x.count() {
            1 => self.direct_rows::<L, 1, 8>(chunk, sums),
            2 => self.direct_rows::<L, 2, 4>(chunk, sums),
            3 => self.direct_rows::<L, 3, 4>(chunk, sums),
            _ => self.direct_rows::<L, 4, 4>(chunk, sums),
        }
    }

    #[inline(always)]
    fn direct_rows<L: Lanes, const M: usize, const N: usize>(
        &self,
        chunk: Range<usize>,
        sums: &mut [f32],
    ) {
        let outs = self.w.count();
        let mut first = 0;
        while first + N <= outs {
            self.direct_tile::<L, M, N>(chunk.clone(), first, sums);
            first += N;
        }
        for first in first..outs {
            self.direct_tile::<L, M, 1>(chunk.clone(), first, sums);
        }
    }

    #[inline(always)]
    fn direct_tile<L: Lanes, const M: usize, const N: usize>(
        &self,
        chunk: Range<usize>,
        first: usize,
        sums: &mut [f32],
    ) {
        let mut acc = [[L::splat(0.0); N]; M];
        // SAFETY: `M` rows and the outputs `first..first + N` exist, and the chunk is inside them.
        unsafe {
            let w = self.w.as_ptr().add(first * self.w.stride() + chunk.start);
            let x = self.x.as_ptr().add(chunk.start);
            advance(
                &mut acc,
                (x, self.x.stride()),
                (w, self.w.stride()),
                chunk.len(),
            );
        }
        for (m, acc) in acc.iter().enumerate() {
            for (n, acc) in acc.iter().enumerate() {
                sums[m * self.w.count() + first + n] = acc.sum();
            }
        }
    }

    /// Many rows: arithmetic decides, so a block of weights is converted once for all rows.
    #[inline(always)]
    fn panels<L: Lanes>(
        &self,
        chunk: Range<usize>,
        sums: &mut [f32],
        accumulators: &mut Vec<[f32; LANES]>,
        panel: &mut Vec<[f32; LANES]>,
    ) {
        let (rows, outs) = (self.x.count(), self.w.count());
        let panels = outs.div_ceil(TILE_COLS);
        accumulators.clear();
        accumulators.resize(panels * rows * TILE_COLS, [0.0; LANES]);
        panel.resize(TILE_COLS * DEPTH_BLOCK / LANES, [0.0; LANES]);
        for depth in chunk.clone().step_by(DEPTH_BLOCK) {
            let depth = depth..chunk.end.min(depth + DEPTH_BLOCK);
            for (index, acc) in accumulators.chunks_exact_mut(rows * TILE_COLS).enumerate() {
                let first = index * TILE_COLS;
                let outs = outs.min(first + TILE_COLS) - first;
                for n in 0..TILE_COLS {
                    let panel = &mut panel[n * DEPTH_BLOCK / LANES..][..DEPTH_BLOCK / LANES];
                    if n < outs {
                        convert::<L, E>(&self.w.row(first + n)[depth.clone()], panel);
                    }
                }
                let w = panel.as_ptr().cast::<f32>();
                for (tile, acc) in acc.chunks_mut(TILE_ROWS * TILE_COLS).enumerate() {
                    let row = tile * TILE_ROWS;
                    // SAFETY: the tile's rows exist, `depth` is inside them, and the panel holds
                    // six rows of `DEPTH_BLOCK` values, of which `depth` are used.
                    unsafe {
                        let x = self.x.as_ptr().add(row * self.x.stride() + depth.start);
                        let x = (x, self.x.stride());
                        if L::WIDE {
                            match acc.len() / TILE_COLS {
                                4 => resume::<L, 4>(acc, x, w, depth.len()),
                                3 => resume::<L, 3>(acc, x, w, depth.len()),
                                2 => resume::<L, 2>(acc, x, w, depth.len()),
                                _ => resume::<L, 1>(acc, x, w, depth.len()),
                            }
                        } else {
                            for (m, acc) in acc.chunks_exact_mut(TILE_COLS).enumerate() {
                                resume::<L, 1>(acc, (x.0.add(m * x.1), x.1), w, depth.len());
                            }
                        }
                    }
                }
            }
        }
        for (index, acc) in accumulators.chunks_exact(rows * TILE_COLS).enumerate() {
            let first = index * TILE_COLS;
            for (row, acc) in acc.chunks_exact(TILE_COLS).enumerate() {
                let sums = &mut sums[row * outs..][first..outs.min(first + TILE_COLS)];
                for (sum, acc) in sums.iter_mut().zip(acc) {
                    *sum = L::read(acc, 0).sum();
                }
            }
        }
    }
}

/// Converts weights to `f32`; the last group is filled up with zeros.
#[inline(always)]
fn convert<L: Lanes, E: Element>(weights: &[E], panel: &mut [[f32; LANES]]) {
    for (weights, panel) in weights.chunks(LANES).zip(panel) {
        // SAFETY: a chunk has `len` elements, sixteen or fewer.
        let lanes: L = unsafe {
            if weights.len() == LANES {
                E::load(weights.as_ptr())
            } else {
                load_part(weights.as_ptr(), weights.len())
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
    stored: &mut [[f32; LANES]],
    x: (*const f32, usize),
    panel: *const f32,
    depth: usize,
) {
    let mut acc = [[L::splat(0.0); TILE_COLS]; M];
    for (acc, stored) in acc.iter_mut().zip(stored.chunks_exact(TILE_COLS)) {
        for (acc, stored) in acc.iter_mut().zip(stored) {
            *acc = L::read(stored, 0);
        }
    }
    // SAFETY: as the caller promises.
    unsafe { advance(&mut acc, x, (panel, DEPTH_BLOCK), depth) };
    for (acc, stored) in acc.iter().zip(stored.chunks_exact_mut(TILE_COLS)) {
        for (acc, stored) in acc.iter().zip(stored) {
            acc.write(stored, 0);
        }
    }
}

/// `acc[m][n] += x[m] · w[n]` lane by lane over `depth` columns. Rows are given by the first
/// element and the stride.
///
/// # Safety
/// `M` rows of `x` and `N` rows of `w` are valid for reading `depth` elements.
#[inline(always)]
unsafe fn advance<L: Lanes, E: Element, const M: usize, const N: usize>(
    acc: &mut [[L; N]; M],
    (x, x_stride): (*const f32, usize),
    (w, w_stride): (*const E, usize),
    depth: usize,
) {
    // The whole groups on a copy, so that it stays in registers.
    let mut tile = *acc;
    let whole = depth / LANES * LANES;
    let mut i = 0;
    while i < whole {
        let mut ws = [L::splat(0.0); N];
        for (n, lanes) in ws.iter_mut().enumerate() {
            // SAFETY: row `n` has the elements `i..i + 16`.
            *lanes = unsafe { E::load(w.add(n * w_stride + i)) };
        }
        for (m, tile) in tile.iter_mut().enumerate() {
            // SAFETY: row `m` has the elements `i..i + 16`.
            let x: L = unsafe { L::load(x.add(m * x_stride + i)) };
            for (lanes, w) in tile.iter_mut().zip(ws) {
                *lanes = x.mul_add(w, *lanes);
            }
        }
        i += LANES;
    }
    *acc = tile;
    if whole < depth {
        for (m, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the rows have the elements `whole..depth`.
            let x: L = unsafe { load_part(x.add(m * x_stride + whole), depth - whole) };
            for (n, lanes) in acc.iter_mut().enumerate() {
                // SAFETY: as above.
                let w: L = unsafe { load_part(w.add(n * w_stride + whole), depth - whole) };
                *lanes = x.mul_add(w, *lanes);
            }
        }
    }
}

/// [`Weights`] of `f32` or `bf16` rows.
impl<'a> From<Rows<'a, f32>> for Weights<'a> {
    fn from(rows: Rows<'a, f32>) -> Self {
        Self::F32(rows)
    }
}

impl<'a> From<Rows<'a, bf16>> for Weights<'a> {
    fn from(rows: Rows<'a, bf16>) -> Self {
        Self::Bf16(rows)
    }
}
