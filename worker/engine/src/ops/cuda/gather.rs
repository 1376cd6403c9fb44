//! What ranks gathered from each other becomes one result.

use super::{Buffer, Cuda, Element, Pending, kernels::Argument, mismatch, want};
use crate::{Result, ops::column_parts};

impl Cuda {
    /// Where a buffer's values are, once they are added up.
    fn finished(&self, buffer: &Buffer) -> Result<u64> {
        buffer.check("gather")?;
        match buffer.place() {
            Some(place) => Ok(place),
            None => self.settle(buffer).map(|()| buffer.memory.address()),
        }
    }

    /// `out` `[len]`: the sum of parts `[count, len]` as a tree, which is left to whoever reads `out`.
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
        if !matches!(count, 1 | 2 | 4 | 8) {
            return Err(mismatch(op, format!("{count} parts")));
        }
        out.hold_values();
        out.pending = Some(Pending {
            planes: self.finished(parts)?,
            bias: 0,
            count,
            rows: 1,
            width: len,
        });
        Ok(())
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
        out.hold_values();
        let (from, to) = (self.finished(parts)?, out.memory.address());
        let sizes = [rows, each, total].map(|size| size as i32);
        let arguments: [&dyn Argument; 5] = [&from, &sizes[0], &sizes[1], &sizes[2], &to];
        let grid = [self.blocks(rows * total), 1, 1];
        self.launch("join_columns_f32", grid, [256, 1], 0, true, &arguments)
    }
}
