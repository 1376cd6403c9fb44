//! The plan of a step as words, laid out as `kernels/step.cu` says.

use std::{collections::HashMap, ops::Range};

use crate::{
    Error, Result,
    ops::{RowDraw, StepLimits, StepPlan},
    schedule::{Mode, TokenSource},
};

/// Words of a draw.
const DRAW_WORDS: usize = 16;
/// Words before the arrays.
const HEADER: usize = 4;
/// Positions of an attention split, as in `kernels/common.cuh`.
pub(super) const KV_SPLIT: usize = 256;
/// Attention items that are one split of a row: their partial results have to be kept.
const SPLIT_ITEMS: usize = 4096;
/// Words of an attention item.
const ITEM_WORDS: usize = 4;
/// Splits of one K/V head that a GPU reads in the time in which one block computes one.
const SPLITS_AT_ONCE: usize = 64;
/// Split number of a whole row.
const WHOLE: u32 = 0xffff;
/// No row, no draw, or a token that the device knows.
const NONE: u32 = u32::MAX;

/// Where the parts of a plan lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlanLayout {
    max_rows: usize,
    kv_heads: usize,
}

impl PlanLayout {
    /// # Errors
    /// [`Error::Unsupported`] for more rows or positions than the layout has bits for.
    pub(super) fn new(limits: &StepLimits) -> Result<Self> {
        let splits = limits.max_positions.div_ceil(KV_SPLIT);
        if limits.max_rows > 0xffff || splits >= 0x7fff {
            return Err(Error::Unsupported {
                what: format!(
                    "steps of {} rows over {} positions",
                    limits.max_rows, limits.max_positions
                ),
                reason: "at most 65535 rows and 8388096 positions".into(),
            });
        }
        Ok(Self {
            max_rows: limits.max_rows,
            kv_heads: limits.kv_heads,
        })
    }

    pub(super) fn words(self) -> usize {
        self.items() + ITEM_WORDS * self.max_items()
    }

    pub(super) fn max_items(self) -> usize {
        SPLIT_ITEMS.max(self.max_rows)
    }

    /// Items that may have partial results.
    pub(super) fn split_items(self) -> usize {
        SPLIT_ITEMS
    }

    pub(super) fn item_count(self) -> usize {
        1
    }

    pub(super) fn tokens(self) -> usize {
        HEADER
    }

    pub(super) fn positions(self) -> usize {
        HEADER + self.max_rows
    }

    pub(super) fn slots(self) -> usize {
        HEADER + 2 * self.max_rows
    }

    pub(super) fn first_items(self) -> usize {
        HEADER + 3 * self.max_rows
    }

    pub(super) fn picked(self, mode: Mode) -> usize {
        HEADER + (4 + place(mode)) * self.max_rows
    }

    pub(super) fn draws(self, mode: Mode) -> usize {
        HEADER + (6 + DRAW_WORDS * place(mode)) * self.max_rows
    }

    pub(super) fn items(self) -> usize {
        (HEADER + (6 + 2 * DRAW_WORDS) * self.max_rows).next_multiple_of(ITEM_WORDS)
    }

    fn rows_at(self, first: usize) -> Range<usize> {
        first..first + self.max_rows
    }

    /// Writes `plan`, whose sizes are checked, into `words`, and returns how many are used.
    pub(super) fn write(self, plan: &StepPlan, window: Option<usize>, words: &mut [u32]) -> usize {
        words[self.rows_at(self.tokens())].fill(0);
        for array in [
            self.positions(),
            self.first_items(),
            self.picked(Mode::Image),
            self.picked(Mode::Text),
        ] {
            words[self.rows_at(array)].fill(NONE);
        }
        words[self.rows_at(self.slots())].fill(0);
        for (row, token) in plan.tokens.iter().enumerate() {
            words[self.tokens() + row] = match token {
                TokenSource::Known(token) => *token,
                TokenSource::Drawn => NONE,
            };
        }
        let rows = plan.len();
        words[self.positions()..][..rows].copy_from_slice(&plan.positions);
        words[self.slots()..][..rows].copy_from_slice(&plan.slots);
        for mode in [Mode::Image, Mode::Text] {
            let picked = plan.picked.of(mode);
            words[self.picked(mode)..][..picked.len()].copy_from_slice(picked);
            let draws = &mut words[self.draws(mode)..][..DRAW_WORDS * self.max_rows];
            for (index, draw) in draws.chunks_exact_mut(DRAW_WORDS).enumerate() {
                match plan.draws.of(mode).get(index) {
                    Some(planned) => draw.copy_from_slice(&draw_words(planned)),
                    None => draw[0] = NONE,
                }
            }
        }
        let items = self.write_items(plan, window, words);
        words[..HEADER].copy_from_slice(&[
            rows as u32,
            items as u32,
            plan.draws.image.len() as u32,
            plan.draws.text.len() as u32,
        ]);
        self.items() + ITEM_WORDS * items
    }

    /// Writes the work list of the attention (`struct Item` of `kernels/walk.cuh`) and returns its length.
    fn write_items(self, plan: &StepPlan, window: Option<usize>, words: &mut [u32]) -> usize {
        let splits = |position: u32| {
            let last = position as usize;
            let first = window.map_or(0, |window| (last + 1).saturating_sub(window));
            first / KV_SPLIT..last / KV_SPLIT + 1
        };
        let all: usize = plan.positions.iter().map(|&p| splits(p).len()).sum();
        // What the step writes of a sequence begins here.
        let mut fresh = HashMap::new();
        for (&slot, &position) in plan.slots.iter().zip(&plan.positions) {
            let first = fresh.entry(slot).or_insert(position);
            *first = position.min(*first);
        }
        let mut count = 0;
        for (row, (&slot, &position)) in plan.slots.iter().zip(&plan.positions).enumerate() {
            let splits = splits(position);
            let mut push = |split: u32| {
                let at = self.items() + ITEM_WORDS * count;
                words[at..][..ITEM_WORDS].copy_from_slice(&[
                    row as u32 | split << 16,
                    position,
                    slot,
                    fresh[&slot],
                ]);
                count += 1;
            };
            // A row is read by one block, unless that would take longer than the GPU takes for all rows.
            let long = splits.len() * SPLITS_AT_ONCE > all * self.kv_heads;
            if long && splits.len() > 1 && all <= SPLIT_ITEMS {
                let first = splits.clone().map(|split| push(split as u32)).count();
                words[self.first_items() + row] = (count - first) as u32;
            } else {
                push(WHOLE);
            }
        }
        count
    }
}

fn place(mode: Mode) -> usize {
    match mode {
        Mode::Image => 0,
        Mode::Text => 1,
    }
}

/// `struct Draw` of `kernels/sample.cu`.
fn draw_words(planned: &RowDraw) -> [u32; DRAW_WORDS] {
    let (draw, params) = (&planned.draw, &planned.draw.params);
    [
        planned.row as u32,
        planned.uncond_row.map_or(NONE, |row| row as u32),
        planned.slots.0,
        planned.slots.1.unwrap_or(NONE),
        draw.n,
        draw.image_index,
        draw.seed as u32,
        (draw.seed >> 32) as u32,
        params.temperature.to_bits(),
        u32::try_from(params.top_k).map_or(i32::MAX as u32, |k| k.min(i32::MAX as u32)),
        params.top_p.to_bits(),
        params.min_p.to_bits(),
        params.guidance_scale.to_bits(),
        planned.place as u32,
        u32::from(draw.log_prob),
        0,
    ]
}
