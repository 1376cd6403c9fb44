//! Memory that a thread's kernels reuse, so that no product allocates.

use std::{
    cell::Cell,
    ops::{Deref, DerefMut},
};

use super::aligned::Aligned;

/// Working memory of [`super::product::Product`].
#[derive(Default)]
pub(super) struct Scratch {
    /// Dot products of chunks, `[chunk, row, output]`.
    pub sums: Aligned,
    /// Lanes of unfinished dot products.
    pub accumulators: Aligned,
    /// Weights as `f32`.
    pub panel: Aligned,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

impl Scratch {
    /// This thread's scratch memory; it goes back when dropped.
    pub(super) fn take() -> Taken {
        Taken(SCRATCH.take())
    }
}

/// Scratch memory in use.
pub(super) struct Taken(Scratch);

impl Deref for Taken {
    type Target = Scratch;

    fn deref(&self) -> &Scratch {
        &self.0
    }
}

impl DerefMut for Taken {
    fn deref_mut(&mut self) -> &mut Scratch {
        &mut self.0
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.0));
    }
}
