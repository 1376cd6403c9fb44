//! Sharing of work between threads. It never changes results: tasks write to different places.

use rayon::prelude::*;

/// Multiply-adds (or as much other work) below which handing work over costs more than it saves.
const WORTH_SHARING: usize = 1 << 17;

/// Runs `task(0) … task(count - 1)`, of `work` multiply-adds in all, on the current rayon pool.
pub(super) fn for_each(count: usize, work: usize, task: impl Fn(usize) + Sync + Send) {
    if count < 2 || work < WORTH_SHARING {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().for_each(task);
    }
}

/// Runs `task(i, chunk)` for each `chunk` of `len` values; `work` as in [`for_each`].
pub(super) fn for_each_chunk(
    values: &mut [f32],
    len: usize,
    work: usize,
    task: impl Fn(usize, &mut [f32]) + Sync + Send,
) {
    if len == 0 {
        return;
    }
    if values.len() <= len || work < WORTH_SHARING {
        for (i, chunk) in values.chunks_mut(len).enumerate() {
            task(i, chunk);
        }
    } else {
        values
            .par_chunks_mut(len)
            .enumerate()
            .for_each(|(i, chunk)| task(i, chunk));
    }
}
