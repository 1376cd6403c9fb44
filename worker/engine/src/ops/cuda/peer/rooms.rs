//! The rooms of an inbox, and which of them an exchange takes.

use crate::{Result, ops::cuda::mismatch};

/// Values of a rank that a room holds.
pub(super) const ROOM: usize = 2 << 20;
/// Two for sums, in turn, one for each of two buffers that are gathered into, and one for every other piece of what no room
/// holds.
pub(super) const ROOMS: usize = 5;
const FIRST_GATHERED: usize = 2;
const SPARE: usize = ROOMS - 1;

/// What took a room so far. No exchange takes that of the one before it, whatever steps of an even number of sums are played
/// one after the other.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    sums: usize,
    /// Addresses of buffers that are gathered into.
    gathered: Vec<u64>,
}

impl Rooms {
    /// That of the next sum, or piece of one.
    pub(super) fn of_sum(&mut self) -> usize {
        self.sums += 1;
        self.sums % 2
    }

    /// Those that the pieces of what is gathered into the buffer at `address` take in turn.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for a third buffer.
    pub(super) fn of_gather(&mut self, address: u64) -> Result<[usize; 2]> {
        let known = self.gathered.iter().position(|&other| other == address);
        let room = FIRST_GATHERED + known.unwrap_or(self.gathered.len());
        if room == SPARE {
            return Err(mismatch("gather", "a third buffer".into()));
        }
        if known.is_none() {
            self.gathered.push(address);
        }
        Ok([room, SPARE])
    }
}

/// The pieces of `len` values that a room holds: their first values and lengths.
pub(super) fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len)
        .step_by(ROOM)
        .map(move |first| (first, ROOM.min(len - first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rooms that a step takes whose sums and gathers, one for each of `heads`, are of so many values.
    fn step(
        rooms: &mut Rooms,
        layers: usize,
        sum: usize,
        heads: &[u64],
        gather: usize,
    ) -> Vec<usize> {
        let mut taken = Vec::new();
        for _ in 0..2 * layers {
            taken.extend(pieces(sum).map(|_| rooms.of_sum()));
        }
        for &head in heads {
            let two = rooms.of_gather(head).expect("two buffers");
            taken.extend(pieces(gather).enumerate().map(|(piece, _)| two[piece % 2]));
        }
        taken
    }

    #[test]
    fn no_exchange_takes_the_room_of_the_one_before_it_in_whatever_order_steps_are_played() {
        let mut rooms = Rooms::default();
        let mut steps = Vec::new();
        for (layers, heads) in [(1, &[7][..]), (3, &[7, 9]), (2, &[9]), (5, &[])] {
            for sum in [1, ROOM, ROOM + 1, 3 * ROOM] {
                for gather in [ROOM, 2 * ROOM, 2 * ROOM + 5] {
                    steps.push(step(&mut rooms, layers, sum, heads, gather));
                }
            }
        }
        for first in &steps {
            for second in &steps {
                let played = [&first[..], &second[..]].concat();
                assert!(
                    played.windows(2).all(|pair| pair[0] != pair[1]),
                    "{played:?}"
                );
            }
        }
    }

    #[test]
    fn a_third_buffer_to_gather_into_is_refused() {
        let mut rooms = Rooms::default();
        assert_eq!(rooms.of_gather(7).ok(), Some([2, 4]));
        assert_eq!(rooms.of_gather(9).ok(), Some([3, 4]));
        assert_eq!(rooms.of_gather(7).ok(), Some([2, 4]));
        assert!(rooms.of_gather(8).is_err());
    }

    #[test]
    fn pieces_are_all_of_it() {
        let all = |len| pieces(len).collect::<Vec<_>>();
        assert_eq!(all(5), [(0, 5)]);
        assert_eq!(all(ROOM), [(0, ROOM)]);
        assert_eq!(all(2 * ROOM + 3), [(0, ROOM), (ROOM, ROOM), (2 * ROOM, 3)]);
    }
}
