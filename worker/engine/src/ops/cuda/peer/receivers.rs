//! Where products send the planes that ranks add up.

use super::RANKS;
use crate::ops::cuda::kernels::Argument;

/// `struct Receivers` of `kernels/peer.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(in crate::ops::cuda) struct Receivers {
    /// Of each rank, the address of this rank's first plane.
    rooms: [u64; RANKS],
    count: i32,
}

// As the kernels assert it.
const _: () = assert!(size_of::<Receivers>() == 72);

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernels' struct.
    unsafe impl super::Argument for super::Receivers {}
}

impl Receivers {
    /// Planes stay here.
    pub(in crate::ops::cuda) const NONE: Self = Self {
        rooms: [0; RANKS],
        count: 0,
    };

    /// Whether there are any.
    pub(in crate::ops::cuda) fn any(&self) -> bool {
        self.count > 0
    }

    /// Those at `addresses`, one a rank.
    pub(super) fn new(addresses: impl Iterator<Item = u64>) -> Self {
        let mut receivers = Self::NONE;
        for (room, address) in receivers.rooms.iter_mut().zip(addresses) {
            *room = address;
            receivers.count += 1;
        }
        receivers
    }
}
