//! What ranks gathered from each other becomes one result.

use super::{Buffer, Cuda, Element, kernels::Argument, mismatch, want};
use crate::{Result, ops::column_parts};

impl Cuda {
    /// `out` `[len]`: the sum of parts `[count, len]` as a tree.
    pub(super) fn sum_parts(
        &self,
        parts: &Buffer,
        count: usize,
        len: usize,
        out: &mut Buffer,
    ) -> Result<()> {
        let op = "tree_sum";
        want(op, "out", out, Element::F32, len)?;
        want(op, "parts", parts, Element::F32, count * len)?;
        self.settle(parts)?;
        out.pending = None;
        let (name, values) = match (count, len.is_multiple_of(4)) {
            (1, _) => return self.stream.copy(&parts.memory, 0, &out.memory, 0, len * 4),
            (2 | 4 | 8, true) => ("tree_sum_f32x4", 4),
            (2 | 4 | 8, false) => ("tree_sum_f32", 1),
            _ => return Err(mismatch(op, format!("{count} parts"))),
        };
        let (from, to) = (parts.memory.address(), out.memory.address());
        let arguments: [&dyn Argument; 4] = [&from, &(count as i32), &(len / values), &to];
        let grid = [self.blocks(len / values), 1, 1];
        self.launch(name, grid, [256, 1], 0, true, &arguments)
    }

    /// `out` `[rows, Σ widths]` from parts side by side.
    pub(super) fn join_columns(
        &self,
        parts: &Buffer,
        widths: &[usize],
        rows: usize,
        out: &mut Buffer,
    ) -> Result<()> {
        let op = "concat_columns";
        let uneven = || mismatch(op, format!("parts of widths {widths:?}"));
        let (total, each) = column_parts(widths).ok_or_else(uneven)?;
        want(op, "out", out, Element::F32, rows * total)?;
        let needed = widths.len() * rows * each;
        want(op, "parts", parts, Element::F32, needed)?;
        self.settle(parts)?;
        out.pending = None;
        let (from, to) = (parts.memory.address(), out.memory.address());
        let sizes = [rows, each, total].map(|size| size as i32);
        let arguments: [&dyn Argument; 5] = [&from, &sizes[0], &sizes[1], &sizes[2], &to];
        let grid = [self.blocks(rows * total), 1, 1];
        self.launch("join_columns_f32", grid, [256, 1], 0, true, &arguments)
    }
}
