//! What is brought to the L2 cache of a weight that is needed soon, while few rows leave memory with nothing to do.

use super::Matrix;

/// Rows up to which memory has time for it.
const FEW_ROWS: usize = 8;
/// How far into a multiprocessor's share of the weight it begins: what comes first, the product fetches while it waits.
const FROM: usize = 48 << 10;
/// Bytes that the attention of one row fetches, and those that the product after it does, of one row and of a few.
const ATTENTION: usize = 12 << 20;
const READER: usize = 8 << 20;
const READER_OF_FEW: usize = 12 << 20;
/// Bytes of a weight of which nothing is fetched ahead: rings hold so much of less that it would come no sooner.
const SMALL: usize = 100 << 20;
/// Addresses and sizes are multiples.
const UNIT: usize = 128;

/// `struct Ahead` of `kernels/common.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    from: u64,
    stride: usize,
    bytes: i32,
}

/// Which pieces of a weight are fetched, by whom.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pieces {
    pub attention: Ahead,
    /// By the product that reads what attention made.
    pub reader: Ahead,
}

impl Pieces {
    /// Those for a step of `rows` rows on a GPU of so many multiprocessors.
    pub(super) fn of(weight: &Matrix, rows: usize, multiprocessors: usize) -> Self {
        Self::at(weight.address(), weight.bytes(), rows, multiprocessors)
    }

    fn at(address: u64, bytes: usize, rows: usize, multiprocessors: usize) -> Self {
        if bytes < SMALL {
            return Self::default();
        }
        let (attention, reader) = match rows {
            0..=1 => (ATTENTION, READER),
            2..=FEW_ROWS => (0, READER_OF_FEW),
            _ => return Self::default(),
        };
        let units = |bytes: usize| bytes / multiprocessors / UNIT * UNIT;
        let stride = units(bytes);
        let piece = |first: usize, bytes: usize| Ahead {
            from: address + first as u64,
            stride,
            bytes: units(bytes).min(stride.saturating_sub(first)) as i32,
        };
        Self {
            attention: piece(FROM, attention),
            reader: piece(FROM + units(attention), reader),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_in_the_weight_and_follow_each_other() {
        for bytes in [271_581_184, 33_947_648, 20 << 20, 8192, 0] {
            for rows in [1, 2, 8, 9] {
                let first = 1 << 20;
                let Pieces { attention, reader } = Pieces::at(first, bytes, rows, 132);
                for piece in [attention, reader] {
                    let last = piece.from + (131 * piece.stride) as u64 + piece.bytes as u64;
                    assert!(piece.bytes == 0 || last <= first + bytes as u64);
                    assert_eq!(
                        [piece.stride, piece.bytes as usize].map(|of| of % 16),
                        [0; 2]
                    );
                }
                let follows = attention.from + attention.bytes as u64 == reader.from;
                assert!(follows || reader.bytes == 0);
            }
        }
    }
}
