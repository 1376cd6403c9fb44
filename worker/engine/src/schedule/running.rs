//! A request that holds its slots and blocks.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Weak},
};

use super::{
    pool::{Lease, Pool},
    request::Request,
    step::{Admission, DrawSetup, Row, Sample, Slot, Step, TokenSource},
};

/// One sequence: known tokens first, drawn ones after.
#[derive(Debug)]
struct Stream {
    slot: Lease,
    _shared_blocks: Option<Arc<Lease>>,
    _blocks: Lease,
    known: Vec<u32>,
    /// Positions that are run in all: the last token drawn is never fed back.
    rows: usize,
    /// Positions planned so far.
    fed: usize,
}

impl Stream {
    fn slot(&self) -> Slot {
        self.slot.ids()[0]
    }

    fn push_rows(&mut self, positions: Range<usize>, step: &mut Step) {
        for position in positions {
            let token = match self.known.get(position) {
                Some(&token) => TokenSource::Known(token),
                None => TokenSource::Drawn,
            };
            step.rows.push(Row {
                slot: self.slot(),
                position: position as u32,
                token,
            });
        }
    }
}

/// One output: a conditional stream and, if guided, an unconditional one.
#[derive(Debug)]
struct Output {
    streams: Vec<Stream>,
    /// Tokens forced or planned.
    drawn: usize,
    /// The last step that draws from it.
    drawn_in: Option<u64>,
}

impl Output {
    /// Whether the next row of every stream is one to draw from.
    fn ready(&self) -> bool {
        self.streams
            .iter()
            .all(|stream| stream.fed + 1 >= stream.known.len())
    }
}

/// A request of which at least one output was admitted.
#[derive(Debug)]
pub(super) struct Running {
    pub request: Request,
    /// Outputs by index; `None` while they wait and once finished.
    outputs: Vec<Option<Output>>,
    /// Outputs that wait for room, in order.
    waiting: VecDeque<usize>,
    /// Prompt positions whose blocks running outputs share, and how many of them are planned.
    shared: usize,
    shared_fed: usize,
    /// Held by the streams only: a request of which nothing runs holds nothing.
    shared_blocks: Weak<Lease>,
}

/// Blocks and slots that one output of a request needs, shared blocks included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    pub blocks: usize,
    pub slots: usize,
}

fn blocks_for(positions: usize, block_size: usize) -> usize {
    positions.div_ceil(block_size)
}

impl Needs {
    /// The needs of any output of `request`, whose lengths are checked.
    pub fn of_output(request: &Request, block_size: usize) -> Self {
        let stream = |prompt: &[u32]| blocks_for(prompt.len() + request.max_tokens, block_size);
        let negative = request.negative_prompt.as_deref();
        Self {
            blocks: stream(&request.prompt) + negative.map_or(0, stream),
            slots: 1 + usize::from(negative.is_some()),
        }
    }

    pub fn available(self, blocks: &Pool, slots: &Pool) -> bool {
        self.blocks <= blocks.available() && self.slots <= slots.available()
    }
}

/// Positions of one output, were nothing shared.
pub(super) fn output_rows(request: &Request) -> usize {
    let stream = |prompt: &[u32]| prompt.len() + request.max_tokens - 1;
    stream(&request.prompt) + request.negative_prompt.as_deref().map_or(0, stream)
}

/// Prompt positions whose full blocks outputs share; the last prompt position is never among them,
/// since every output draws its first token from a row of its own there.
fn shared_positions(request: &Request, block_size: usize) -> usize {
    let live = request
        .outputs
        .iter()
        .filter(|o| o.forced.len() < request.max_tokens)
        .count();
    if live < 2 {
        0
    } else {
        (request.prompt.len() - 1) / block_size * block_size
    }
}

impl Running {
    /// A request none of whose outputs is admitted yet.
    pub fn new(request: Request, block_size: usize) -> Self {
        let unfinished = |&index: &usize| request.outputs[index].forced.len() < request.max_tokens;
        Self {
            waiting: (0..request.outputs.len()).filter(unfinished).collect(),
            outputs: request.outputs.iter().map(|_| None).collect(),
            shared: shared_positions(&request, block_size),
            shared_fed: 0,
            shared_blocks: Weak::new(),
            request,
        }
    }

    /// Admits waiting outputs in order while there is room for everything that the next one will
    /// ever need; returns their indices. Outputs that run at the same time share the blocks of the
    /// prompt.
    pub fn admit(
        &mut self,
        blocks: &Pool,
        slots: &Pool,
        block_size: usize,
        step: &mut Step,
    ) -> Vec<usize> {
        let mut admitted = Vec::new();
        while let Some(&index) = self.waiting.front() {
            let Some(output) = self.reserve(index, blocks, slots, block_size, step) else {
                break;
            };
            self.outputs[index] = Some(output);
            self.waiting.pop_front();
            admitted.push(index);
        }
        admitted
    }

    /// Whether outputs wait for room.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reserves everything that output `index` will ever need, or nothing.
    fn reserve(
        &mut self,
        index: usize,
        blocks: &Pool,
        slots: &Pool,
        block_size: usize,
        step: &mut Step,
    ) -> Option<Output> {
        let request = &self.request;
        let shared_blocks = self.shared_blocks.upgrade();
        let mut needs = Needs::of_output(request, block_size);
        needs.blocks -= shared_blocks.as_ref().map_or(0, |lease| lease.ids().len());
        if !needs.available(blocks, slots) {
            return None;
        }
        let shared_blocks = match (shared_blocks, self.shared) {
            (None, 0) => None,
            (Some(lease), _) => Some(lease),
            (None, shared) => {
                let lease = Arc::new(blocks.reserve(shared / block_size)?);
                self.shared_blocks = Arc::downgrade(&lease);
                self.shared_fed = 0;
                Some(lease)
            }
        };
        let spec = &request.outputs[index];
        let mut stream = |prompt: &[u32], shared: Option<Arc<Lease>>, draw| {
            let shared_ids = shared.as_ref().map_or(&[][..], |lease| lease.ids());
            let total = blocks_for(prompt.len() + request.max_tokens, block_size);
            let own = blocks.reserve(total - shared_ids.len())?;
            let slot = slots.reserve(1)?;
            step.admissions.push(Admission {
                slot: slot.ids()[0],
                table: shared_ids.iter().chain(own.ids()).copied().collect(),
                mode: request.mode,
                draw,
            });
            Some(Stream {
                slot,
                known: prompt.iter().chain(&spec.forced).copied().collect(),
                rows: prompt.len() + request.max_tokens - 1,
                fed: shared_ids.len() * block_size,
                _shared_blocks: shared,
                _blocks: own,
            })
        };
        let setup = DrawSetup {
            params: request.sampling,
            seed: request.seed,
            image_index: spec.image_index,
            log_prob: request.log_probs,
        };
        let mut streams = vec![stream(&request.prompt, shared_blocks, Some(setup))?];
        if let Some(prompt) = &request.negative_prompt {
            streams.push(stream(prompt, None, None)?);
        }
        Some(Output {
            streams,
            drawn: spec.forced.len(),
            drawn_in: None,
        })
    }

    /// Adds the next row of every output that has one to draw from and does not draw in this step
    /// yet; returns the outputs and their numbers of tokens before the draw.
    pub fn plan_draws(&mut self, max_rows: usize, step: &mut Step) -> Vec<(usize, u32)> {
        if self.shared_fed < self.shared {
            return Vec::new();
        }
        let mut drawn = Vec::new();
        for (index, output) in self.outputs.iter_mut().enumerate() {
            let Some(output) = output else { continue };
            let fits = step.rows.len() + output.streams.len() <= max_rows;
            let exhausted = output.drawn >= self.request.max_tokens;
            if !output.ready() || !fits || exhausted || output.drawn_in == Some(step.id) {
                continue;
            }
            let row = step.rows.len() as u32;
            for stream in &mut output.streams {
                let position = stream.fed;
                stream.push_rows(position..position + 1, step);
                stream.fed += 1;
            }
            let n = output.drawn as u32;
            let uncond_row = (output.streams.len() == 2).then_some(row + 1);
            step.samples.push(Sample { row, uncond_row, n });
            output.drawn += 1;
            output.drawn_in = Some(step.id);
            drawn.push((index, n));
        }
        drawn
    }

    /// Adds as many prefill rows as there is room for.
    pub fn plan_prefill(&mut self, max_rows: usize, step: &mut Step) {
        if self.shared_fed < self.shared {
            let count = (self.shared - self.shared_fed).min(max_rows - step.rows.len());
            let first = self.outputs.iter_mut().flatten().next();
            if let Some(stream) = first.and_then(|output| output.streams.first_mut()) {
                stream.push_rows(self.shared_fed..self.shared_fed + count, step);
                self.shared_fed += count;
            }
        }
        for output in self.outputs.iter_mut().flatten() {
            for stream in &mut output.streams {
                let rest = (stream.known.len() - 1).saturating_sub(stream.fed);
                let count = rest.min(max_rows - step.rows.len());
                stream.push_rows(stream.fed..stream.fed + count, step);
                stream.fed += count;
            }
        }
    }

    /// Whether output `index` still waits for tokens.
    pub fn is_live(&self, index: usize) -> bool {
        self.outputs.get(index).is_some_and(Option::is_some)
    }

    /// Ends output `index` and frees what only it held.
    pub fn finish(&mut self, index: usize) {
        if let Some(output) = self.outputs.get_mut(index) {
            *output = None;
        }
    }

    /// Whether every output has ended.
    pub fn done(&self) -> bool {
        self.waiting.is_empty() && self.outputs.iter().all(Option::is_none)
    }

    /// Rows that are still to be planned.
    pub fn remaining_rows(&self) -> usize {
        let streams = self
            .outputs
            .iter()
            .flatten()
            .flat_map(|output| &output.streams);
        let own: usize = streams.map(|stream| stream.rows - stream.fed).sum();
        let shared = match self.shared_blocks.strong_count() {
            0 => 0,
            _ => self.shared - self.shared_fed,
        };
        shared + own + self.waiting.len() * output_rows(&self.request)
    }
}
