//! The chunks of columns that a product sums alone before it adds them as a tree.

use std::ops::Range;

use crate::parallel::CHUNKS;

/// Where the chunks of a product begin and end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chunks {
    columns: Vec<Range<usize>>,
}

impl Chunks {
    /// All columns in one.
    pub(super) fn whole(cols: usize) -> Self {
        let all = 0..cols;
        Self { columns: vec![all] }
    }

    pub(super) fn of(ranges: &[Range<usize>]) -> Self {
        let columns = ranges.to_vec();
        Self { columns }
    }

    /// Eight chunks of whole blocks of `width` columns.
    pub(super) fn of_columns(cols: usize, width: usize) -> Self {
        let blocks = cols.div_ceil(width);
        let bound = |chunk: usize| (blocks * chunk / CHUNKS * width).min(cols);
        Self {
            columns: (0..CHUNKS).map(|c| bound(c)..bound(c + 1)).collect(),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.columns.len()
    }

    pub(super) fn ranges(&self) -> &[Range<usize>] {
        &self.columns
    }

    /// The chunks in blocks of `width` columns.
    pub(super) fn table(&self, width: usize) -> ChunkTable {
        let mut table = ChunkTable {
            blocks: 0,
            chunks: self.columns.len() as i32,
            first_block: [0; CHUNKS + 1],
            first_col: [0; CHUNKS],
            last_col: [0; CHUNKS],
        };
        for (chunk, columns) in self.columns.iter().enumerate() {
            table.blocks += columns.len().div_ceil(width) as i32;
            table.first_block[chunk + 1..].fill(table.blocks);
            table.first_col[chunk] = columns.start as i32;
            table.last_col[chunk] = columns.end as i32;
        }
        table
    }

    /// Whether chunks are whole blocks of `width` columns that follow each other, and rows begin at
    /// multiples of sixteen bytes.
    pub(super) fn aligned(&self, cols: usize, width: usize) -> bool {
        let mut next = 0;
        let whole = |c: &Range<usize>| {
            let follows = c.start == next && c.len().is_multiple_of(width);
            next = c.end;
            follows
        };
        cols.is_multiple_of(8) && self.columns.iter().all(whole)
    }
}

/// How the kernels' structs have chunks, after their other fields.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkTable {
    /// Blocks of all chunks.
    pub blocks: i32,
    pub chunks: i32,
    /// First block of each chunk; after the last, the number of blocks.
    pub first_block: [i32; CHUNKS + 1],
    /// First column of each chunk, and the one after its last.
    pub first_col: [i32; CHUNKS],
    pub last_col: [i32; CHUNKS],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_the_blocks_of_each_chunk() {
        let columns = vec![0..5, 5..5, 5..38, 38..102];
        let table = Chunks { columns }.table(32);
        assert_eq!((table.blocks, table.chunks), (5, 4));
        assert_eq!(table.first_block, [0, 1, 1, 3, 5, 5, 5, 5, 5]);
        assert_eq!(table.first_col, [0, 5, 5, 38, 0, 0, 0, 0]);
        assert_eq!(table.last_col, [5, 5, 38, 102, 0, 0, 0, 0]);
    }

    #[test]
    fn columns_are_cut_at_blocks() {
        let chunks = Chunks::of_columns(100, 32);
        assert_eq!(chunks.count(), CHUNKS);
        assert_eq!(chunks.ranges()[CHUNKS - 1], 96..100);
        assert!(!chunks.aligned(100, 32));
        assert!(Chunks::of_columns(256, 32).aligned(256, 32));
    }
}
