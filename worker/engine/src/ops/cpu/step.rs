//! The rows of a step in host memory.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    Error, Result,
    ops::{ByMode, RowDraw, StepPlan, StepRows},
    sampling::Drawn,
    schedule::{Mode, Slot, TokenSource},
};

/// The rows of a step: parallel arrays of length [`RowBatch::len`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowBatch {
    /// Token ids, all known.
    pub tokens: Vec<u32>,
    /// Whether the token is multimodal.
    pub multimodal: Vec<bool>,
    /// Position in the sequence, from 0.
    pub positions: Vec<u32>,
    /// Index of the row's sequence in `tables`.
    pub tables_index: Vec<u32>,
    /// Block tables: the K/V blocks of each sequence, in order of position.
    pub tables: Vec<Arc<[u32]>>,
}

impl RowBatch {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// The step that runs, and what is remembered of each sequence.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    text_vocab: usize,
    pub(super) batch: RowBatch,
    pub(super) picked: ByMode<Vec<u32>>,
    draws: ByMode<Vec<RowDraw>>,
    tables: HashMap<Slot, Arc<[u32]>>,
    last_tokens: HashMap<Slot, u32>,
    /// Of the steps that are not collected, the oldest first.
    drawn: VecDeque<Vec<Option<Drawn>>>,
}

impl Rows {
    pub(super) fn new(text_vocab: usize) -> Self {
        Self {
            text_vocab,
            ..Self::default()
        }
    }

    /// Rows of a batch, of which nothing is picked.
    #[cfg(test)]
    pub(super) fn of(batch: RowBatch) -> Self {
        Self {
            batch,
            ..Self::default()
        }
    }

    pub(super) fn begin(&mut self, plan: &StepPlan) -> Result<()> {
        for (slot, table) in &plan.admitted {
            self.tables.insert(*slot, table.clone());
            self.last_tokens.remove(slot);
        }
        let mut batch = RowBatch::default();
        let mut indices: HashMap<Slot, u32> = HashMap::new();
        for ((&slot, token), &position) in plan.slots.iter().zip(&plan.tokens).zip(&plan.positions)
        {
            let token = match token {
                TokenSource::Known(token) => *token,
                TokenSource::Drawn => *self.last_tokens.get(&slot).ok_or_else(|| {
                    Error::GroupLost(format!("slot {slot} continues before any draw"))
                })?,
            };
            let table = self.tables.get(&slot);
            let table = table
                .ok_or_else(|| Error::GroupLost(format!("a row of slot {slot}, never admitted")))?;
            batch.tokens.push(token);
            batch.multimodal.push(token as usize >= self.text_vocab);
            batch.positions.push(position);
            batch
                .tables_index
                .push(*indices.entry(slot).or_insert_with(|| {
                    batch.tables.push(Arc::clone(table));
                    batch.tables.len() as u32 - 1
                }));
        }
        self.batch = batch;
        self.picked = plan.picked.clone();
        self.draws = plan.draws.clone();
        self.drawn
            .push_back(vec![None; plan.draws.image.len() + plan.draws.text.len()]);
        Ok(())
    }

    pub(super) fn draws(&self, mode: Mode) -> &[RowDraw] {
        self.draws.of(mode)
    }

    /// Keeps what the draws of `mode` came to; entry `i` is token `first_id + i`.
    pub(super) fn keep(&mut self, mode: Mode, drawn: Vec<Option<Drawn>>, first_id: u32) {
        for (draw, drawn) in self.draws.of(mode).iter().zip(drawn) {
            // A step planned ahead may still run rows of a sequence that came to nothing.
            let token = drawn.map_or(0, |drawn| first_id + drawn.index);
            let (slot, uncond_slot) = draw.slots;
            for slot in [Some(slot), uncond_slot].into_iter().flatten() {
                self.last_tokens.insert(slot, token);
            }
            let step = self.drawn.back_mut();
            if let Some(place) = step.and_then(|step| step.get_mut(draw.place)) {
                *place = drawn;
            }
        }
    }

    pub(super) fn collect(&mut self) -> Result<Vec<Option<Drawn>>> {
        let oldest = self.drawn.pop_front();
        oldest.ok_or_else(|| Error::GroupLost("no step is in flight".into()))
    }

    pub(super) fn forget(&mut self) {
        *self = Self::new(self.text_vocab);
    }
}

impl StepRows for Rows {
    fn len(&self) -> usize {
        self.batch.len()
    }

    fn picked(&self, mode: Mode) -> usize {
        self.picked.of(mode).len()
    }

    fn ended(&self) -> Result<bool> {
        Ok(true)
    }
}
