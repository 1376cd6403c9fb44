//! The rows of a step on the device: plans go there through a ring of pinned memory, drawn tokens come back through
//! another, and steps of a shape that came before are played from a recording.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::Ordering,
};

use super::{
    Cuda,
    driver::{Event, Graph, Memory, Pinned, Stream},
    kernels::Argument,
    plan::PlanLayout,
};
use crate::{
    Error, Result,
    ops::{StepLimits, StepPlan, StepRows, StepWork},
    sampling::Drawn,
    schedule::{Mode, TokenSource},
};

/// Steps whose plans and draws are kept: those in flight, and the one that is planned.
const RING: usize = 4;
/// Positions of a K/V block.
pub(super) const KV_BLOCK: usize = 16;

/// `struct Rows` of `kernels/common.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsArgument {
    tokens: u64,
    positions: u64,
    slots: u64,
    tables: u64,
    table_stride: i32,
    text_vocab: i32,
}

/// `struct Begin` of `kernels/step.cu`.
#[repr(C)]
struct Begin {
    ring: u64,
    plan: u64,
    count: u64,
    last_tokens: u64,
    ring_len: i32,
    plan_words: i32,
    max_rows: i32,
    rows: i32,
    draws: [i32; 2],
}

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernels' structs.
    unsafe impl super::Argument for super::RowsArgument {}
    // SAFETY: as above.
    unsafe impl super::Argument for super::Begin {}
}

/// What tells the recordings apart: everything that launches depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    images: usize,
    texts: usize,
}

/// A step that began and was not collected.
#[derive(Debug)]
struct Flight {
    /// Place in the rings.
    place: usize,
    /// Whether each draw wants its log-probability.
    log_probs: Vec<bool>,
}

/// A sequence slot as the host knows it.
#[derive(Debug, Clone, Copy, Default)]
struct SlotState {
    /// Blocks in its table.
    blocks: usize,
    /// Whether a token was drawn for it.
    drawn: bool,
}

/// The step that runs, on the device.
#[derive(Debug)]
pub struct Rows {
    // Dropped first: recordings refer to all the rest.
    recordings: HashMap<Shape, Option<Graph>>,
    limits: StepLimits,
    layout: PlanLayout,
    table_stride: usize,
    plans: Pinned,
    /// Brings plans to `arrivals` while the step before runs.
    ahead: Stream,
    arrivals: Memory,
    brought: Vec<Event>,
    drawn: Pinned,
    plan: Memory,
    count: Memory,
    last_tokens: Memory,
    tables: Memory,
    /// Splits of each row and K/V head that the attention has finished.
    arrived: Memory,
    ended: Vec<Event>,
    shape: Shape,
    /// Steps begun.
    steps: usize,
    flights: VecDeque<Flight>,
    slots: Vec<SlotState>,
    /// The largest block that any table names.
    pub(super) last_block: u32,
}

/// The rows that are computed for `count`: 1, 2, 4, every 8 to 64, every 16 to 256, then every 256; at most `most`.
fn bucket(count: usize, most: usize) -> usize {
    let step = match count {
        0 => return 0,
        1..=4 => return count.next_power_of_two().min(most),
        5..=64 => 8,
        65..=256 => 16,
        _ => 256,
    };
    count.next_multiple_of(step).min(most)
}

fn lost(reason: String) -> Error {
    Error::GroupLost(reason)
}

impl StepRows for Rows {
    fn len(&self) -> usize {
        self.shape.rows
    }

    fn picked(&self, mode: Mode) -> usize {
        match mode {
            Mode::Image => self.shape.images,
            Mode::Text => self.shape.texts,
        }
    }

    fn ended(&self) -> Result<bool> {
        let oldest = self.flights.front();
        oldest.map_or(Ok(true), |flight| self.ended[flight.place].happened())
    }
}

impl Rows {
    pub(super) fn new(cuda: &Cuda, limits: &StepLimits) -> Result<Self> {
        if limits.block_size != KV_BLOCK {
            return Err(Error::Unsupported {
                what: format!("K/V blocks of {} positions", limits.block_size),
                reason: format!("on CUDA they have {KV_BLOCK}"),
            });
        }
        let layout = PlanLayout::new(limits)?;
        let table_stride = limits.max_positions.div_ceil(KV_BLOCK);
        let memory = |words: usize| {
            let memory = Memory::new(&cuda.context, words * 4, "steps")?;
            cuda.stream.zero(&memory).map(|()| memory)
        };
        let rows = Self {
            recordings: HashMap::new(),
            limits: *limits,
            layout,
            table_stride,
            plans: Pinned::new(&cuda.context, RING * layout.words())?,
            ahead: Stream::new(&cuda.context)?,
            arrivals: memory(RING * layout.words())?,
            brought: (0..RING)
                .map(|_| Event::new(&cuda.context))
                .collect::<Result<_>>()?,
            drawn: Pinned::new(&cuda.context, RING * limits.max_rows * 2)?,
            plan: memory(layout.words())?,
            count: memory(1)?,
            last_tokens: memory(limits.slots)?,
            tables: memory(limits.slots * table_stride)?,
            arrived: memory(limits.max_rows * limits.kv_heads)?,
            ended: (0..RING)
                .map(|_| Event::new(&cuda.context))
                .collect::<Result<_>>()?,
            shape: Shape {
                rows: 0,
                images: 0,
                texts: 0,
            },
            steps: 0,
            flights: VecDeque::new(),
            slots: vec![SlotState::default(); limits.slots],
            last_block: 0,
        };
        cuda.stream.wait()?;
        Ok(rows)
    }

    pub(super) fn limits(&self) -> &StepLimits {
        &self.limits
    }

    pub(super) fn layout(&self) -> PlanLayout {
        self.layout
    }

    /// Where the kernels find the word `index` of the plan.
    pub(super) fn word(&self, index: usize) -> u64 {
        self.plan.address() + 4 * index as u64
    }

    pub(super) fn arrived(&self) -> u64 {
        self.arrived.address()
    }

    pub(super) fn argument(&self) -> RowsArgument {
        RowsArgument {
            tokens: self.word(self.layout.tokens()),
            positions: self.word(self.layout.positions()),
            slots: self.word(self.layout.slots()),
            tables: self.tables.address(),
            table_stride: self.table_stride as i32,
            text_vocab: self.limits.text_vocab as i32,
        }
    }

    /// Last tokens, drawn ring, count of steps, ring length and draws a step, for the sampler.
    pub(super) fn sampling(&self) -> (u64, u64, u64, i32, i32) {
        (
            self.last_tokens.address(),
            self.drawn.address(),
            self.count.address(),
            RING as i32,
            self.limits.max_rows as i32,
        )
    }

    pub(super) fn begin(&mut self, cuda: &Cuda, plan: &StepPlan) -> Result<()> {
        if self.flights.len() >= RING {
            return Err(lost(format!("{RING} steps are in flight")));
        }
        self.admit(cuda, plan)?;
        self.check(plan)?;
        let place = self.steps % RING;
        let words =
            &mut self.plans.words_mut()[place * self.layout.words()..][..self.layout.words()];
        let used = self.layout.write(plan, self.limits.window, words);
        let at = 4 * place * self.layout.words();
        self.ahead.upload(&words[..used], &self.arrivals, at)?;
        self.ahead.record_event(&self.brought[place])?;
        cuda.stream.wait_for(&self.brought[place])?;
        let most = self.limits.max_rows;
        self.shape = Shape {
            rows: bucket(plan.len(), most),
            images: bucket(plan.picked.image.len(), most),
            texts: bucket(plan.picked.text.len(), most),
        };
        let mut log_probs = vec![false; plan.draws.image.len() + plan.draws.text.len()];
        for draw in plan.draws.image.iter().chain(&plan.draws.text) {
            log_probs[draw.place] = draw.draw.log_prob;
            for slot in [Some(draw.slots.0), draw.slots.1].into_iter().flatten() {
                self.slots[slot as usize].drawn = true;
            }
        }
        self.flights.push_back(Flight { place, log_probs });
        self.steps += 1;
        Ok(())
    }

    fn admit(&mut self, cuda: &Cuda, plan: &StepPlan) -> Result<()> {
        for (slot, table) in &plan.admitted {
            if *slot as usize >= self.limits.slots || table.len() > self.table_stride {
                return Err(lost(format!(
                    "slot {slot} with {} K/V blocks; there are {} slots of {}",
                    table.len(),
                    self.limits.slots,
                    self.table_stride
                )));
            }
            let offset = *slot as usize * self.table_stride * 4;
            cuda.stream.upload(table, &self.tables, offset)?;
            self.last_block = table.iter().copied().fold(self.last_block, u32::max);
            self.slots[*slot as usize] = SlotState {
                blocks: table.len(),
                drawn: false,
            };
        }
        Ok(())
    }

    /// Kernels trust a plan: nothing in it may lie outside.
    fn check(&self, plan: &StepPlan) -> Result<()> {
        let rows = plan.len();
        if rows > self.limits.max_rows || plan.slots.len() != rows || plan.tokens.len() != rows {
            return Err(lost(format!(
                "a step of {rows} rows; at most {}",
                self.limits.max_rows
            )));
        }
        for ((&slot, token), &position) in plan.slots.iter().zip(&plan.tokens).zip(&plan.positions)
        {
            let state = self.slots.get(slot as usize).copied().unwrap_or_default();
            if position as usize / KV_BLOCK >= state.blocks {
                return Err(lost(format!(
                    "slot {slot} has no block for position {position}"
                )));
            }
            if *token == TokenSource::Drawn && !state.drawn {
                return Err(lost(format!("slot {slot} continues before any draw")));
            }
        }
        let count = plan.draws.image.len() + plan.draws.text.len();
        for mode in [Mode::Image, Mode::Text] {
            let (picked, draws) = (plan.picked.of(mode), plan.draws.of(mode));
            let inside = |draw: &&crate::ops::RowDraw| {
                let slots = [Some(draw.slots.0), draw.slots.1];
                draw.row.max(draw.uncond_row.unwrap_or(0)) < picked.len()
                    && draw.place < count
                    && slots
                        .iter()
                        .flatten()
                        .all(|&slot| (slot as usize) < self.limits.slots)
            };
            if picked.len() > self.limits.max_rows
                || picked.iter().any(|&row| row as usize >= rows)
                || count > self.limits.max_rows
                || !draws.iter().all(|draw| inside(&draw))
            {
                return Err(lost("a draw outside its step".into()));
            }
        }
        Ok(())
    }

    fn read_plan(&self, cuda: &Cuda) -> Result<()> {
        let begin = Begin {
            ring: self.arrivals.address(),
            plan: self.plan.address(),
            count: self.count.address(),
            last_tokens: self.last_tokens.address(),
            ring_len: RING as i32,
            plan_words: self.layout.words() as i32,
            max_rows: self.limits.max_rows as i32,
            rows: self.shape.rows as i32,
            draws: [self.shape.images as i32, self.shape.texts as i32],
        };
        cuda.launch("begin_step", [1; 3], [1024, 1], 0, true, &[&begin])?;
        // What reads the plan may do so before it waits for the kernel before it.
        cuda.set_apart();
        Ok(())
    }

    pub(super) fn run(
        &mut self,
        cuda: &Cuda,
        replayable: bool,
        work: &mut StepWork<'_, Self>,
    ) -> Result<()> {
        let shape = self.shape;
        let mut all = |rows: &mut Self| {
            rows.read_plan(cuda)?;
            work(rows)
        };
        if !replayable || cuda.profiles() {
            all(self)?;
        } else {
            match self.recordings.remove(&shape) {
                // The first step of a shape finds and reserves what it needs, which a recording cannot.
                None => {
                    all(self)?;
                    self.recordings.insert(shape, None);
                }
                Some(None) => {
                    let recording = cuda.stream.record(|| all(self))?;
                    cuda.recorded.fetch_add(1, Ordering::Relaxed);
                    cuda.stream.play(&recording)?;
                    self.recordings.insert(shape, Some(recording));
                }
                Some(Some(recording)) => {
                    cuda.stream.play(&recording)?;
                    self.recordings.insert(shape, Some(recording));
                }
            }
        }
        match self.flights.back() {
            Some(flight) => cuda.stream.record_event(&self.ended[flight.place]),
            None => Ok(()),
        }
    }

    pub(super) fn collect(&mut self) -> Result<Vec<Option<Drawn>>> {
        let flight = self.flights.pop_front();
        let flight = flight.ok_or_else(|| lost("no step is in flight".into()))?;
        self.ended[flight.place].wait()?;
        let first = flight.place * self.limits.max_rows * 2;
        let draw = |(number, &log_prob): (usize, &bool)| {
            let index = self.drawn.read(first + 2 * number);
            (index != u32::MAX).then(|| Drawn {
                index,
                log_prob: log_prob.then(|| f32::from_bits(self.drawn.read(first + 2 * number + 1))),
            })
        };
        Ok(flight.log_probs.iter().enumerate().map(draw).collect())
    }

    pub(super) fn forget(&mut self, cuda: &Cuda) -> Result<()> {
        let drained = cuda.stream.wait();
        // A communicator that recordings use does not end before them.
        self.recordings.clear();
        self.flights.clear();
        self.slots.fill(SlotState::default());
        self.last_block = 0;
        // A step that began and failed may not have been counted.
        self.steps = 0;
        drained?;
        cuda.stream.zero(&self.count)?;
        cuda.stream.zero(&self.arrived)?;
        cuda.stream.wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rounded_up_to_the_recorded_sizes() {
        let buckets = [0, 1, 3, 5, 8, 9, 64, 65, 256, 257, 512].map(|count| bucket(count, 512));
        assert_eq!(buckets, [0, 1, 4, 8, 8, 16, 64, 80, 256, 512, 512]);
        assert_eq!(bucket(9, 12), 12);
    }
}
