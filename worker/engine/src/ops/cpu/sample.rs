//! Token draws, one row each.

use rayon::prelude::*;

use crate::{
    ops::RowDraw,
    sampling::{Drawn, draw},
};

/// Draws from rows of `logits` `[rows, vocab]`, all of which exist; `None` where the scores are not finite.
/// `suppressed` entries are never drawn.
pub(super) fn sample(
    logits: &[f32],
    vocab: usize,
    suppressed: &[u32],
    draws: &[RowDraw],
) -> Vec<Option<Drawn>> {
    let row = |row: usize| &logits[row * vocab..][..vocab];
    let one = |wanted: &RowDraw| {
        let uncond = wanted.uncond_row.map(row);
        if suppressed.is_empty() {
            return draw(row(wanted.row), uncond, &wanted.draw);
        }
        let mut possible = row(wanted.row).to_vec();
        for &index in suppressed {
            possible[index as usize] = f32::NEG_INFINITY;
        }
        draw(&possible, uncond, &wanted.draw)
    };
    if draws.len() * vocab < 1 << 14 {
        return draws.iter().map(one).collect();
    }
    draws.par_iter().map(one).collect()
}
