//! How blocks of three warpgroups share a product.

/// `struct Parts` of `kernels/share.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Parts {
    /// Blocks of a chunk.
    pub blocks: i32,
    /// Tiles that each of them has.
    each: i32,
    /// Tiles that are left over.
    left: i32,
    /// How often those are halved, so that no block has more than one part.
    halvings: i32,
}

impl Parts {
    /// Most halvings that there are instructions for.
    const MOST: u32 = 2;

    /// Of `tiles` tiles in `chunks` chunks each.
    pub(super) fn new(tiles: usize, chunks: usize, multiprocessors: usize) -> Self {
        let blocks = (multiprocessors / chunks).min(tiles).max(1);
        let left = tiles % blocks;
        let halvings = (0..=Self::MOST)
            .rev()
            .find(|&halvings| left << halvings <= blocks);
        Self {
            blocks: blocks as i32,
            each: (tiles / blocks) as i32,
            left: left as i32,
            halvings: halvings.unwrap_or(0) as i32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_that_are_left_over_are_parted_as_far_as_there_are_blocks() {
        let parts = |tiles, chunks| {
            let of = Parts::new(tiles, chunks, 132);
            (of.blocks, of.each, of.left, of.halvings)
        };
        assert_eq!(parts(592, 1), (132, 4, 64, 1));
        assert_eq!(parts(72, 4), (33, 2, 6, 2));
        assert_eq!(parts(56, 8), (16, 3, 8, 1));
        assert_eq!(parts(256, 1), (132, 1, 124, 0));
        // No block has nothing but a part.
        assert_eq!(parts(5, 8), (5, 1, 0, 2));
    }
}
