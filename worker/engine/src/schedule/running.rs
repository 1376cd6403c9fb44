//! A request that holds its slots and blocks.

use std::{ops::Range, sync::Arc};

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

/// An admitted request.
#[derive(Debug)]
pub(super) struct Running {
    pub request: Request,
    /// Outputs by index; `None` once finished.
    outputs: Vec<Option<Output>>,
    /// Prompt positions whose blocks all outputs share, and how many of them are planned.
    shared: usize,
    shared_fed: usize,
}

/// Blocks and slots that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    pub blocks: usize,
    pub slots: usize,
}

fn blocks_for(positions: usize, block_size: usize) -> usize {
    positions.div_ceil(block_size)
}

/// Prompt positions whose full blocks are shared; the last prompt position is never among them,
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

/// Outputs that still have something to draw, by index.
fn live_outputs(request: &Request) -> impl Iterator<Item = usize> + '_ {
    let unfinished = |&index: &usize| request.outputs[index].forced.len() < request.max_tokens;
    (0..request.outputs.len()).filter(unfinished)
}

impl Needs {
    pub fn of(request: &Request, block_size: usize) -> Self {
        let shared = shared_positions(request, block_size);
        let live = live_outputs(request).count();
        let cond = blocks_for(
            request.prompt.len() + request.max_tokens - shared,
            block_size,
        );
        let uncond = request.negative_prompt.as_ref().map_or(0, |prompt| {
            blocks_for(prompt.len() + request.max_tokens, block_size)
        });
        let streams = 1 + usize::from(request.negative_prompt.is_some());
        Self {
            blocks: shared / block_size + live * (cond + uncond),
            slots: live * streams,
        }
    }
}

impl Running {
    /// Reserves everything the request will ever need, or nothing.
    pub fn admit(
        request: &Request,
        blocks: &Pool,
        slots: &Pool,
        block_size: usize,
        step: &mut Step,
    ) -> Option<Self> {
        let shared = shared_positions(request, block_size);
        let shared_blocks = match shared {
            0 => None,
            _ => Some(Arc::new(blocks.reserve(shared / block_size)?)),
        };
        let mut admissions = Vec::new();
        let mut outputs: Vec<Option<Output>> = request.outputs.iter().map(|_| None).collect();
        for index in live_outputs(request) {
            let spec = &request.outputs[index];
            let mut stream = |prompt: &[u32], shared: Option<&Arc<Lease>>, draw| {
                let first = shared.map_or(0, |lease| lease.ids().len());
                let total = blocks_for(prompt.len() + request.max_tokens, block_size);
                let own = blocks.reserve(total - first)?;
                let slot = slots.reserve(1)?;
                let table = shared
                    .iter()
                    .flat_map(|l| l.ids())
                    .chain(own.ids())
                    .copied()
                    .collect();
                let slot_id = slot.ids()[0];
                admissions.push(Admission {
                    slot: slot_id,
                    table,
                    mode: request.mode,
                    draw,
                });
                Some(Stream {
                    slot,
                    _shared_blocks: shared.cloned(),
                    _blocks: own,
                    known: prompt.iter().chain(&spec.forced).copied().collect(),
                    rows: prompt.len() + request.max_tokens - 1,
                    fed: first * block_size,
                })
            };
            let setup = DrawSetup {
                params: request.sampling,
                seed: request.seed,
                image_index: spec.image_index,
            };
            let mut streams = vec![stream(
                &request.prompt,
                shared_blocks.as_ref(),
                Some(setup),
            )?];
            if let Some(prompt) = &request.negative_prompt {
                streams.push(stream(prompt, None, None)?);
            }
            outputs[index] = Some(Output {
                streams,
                drawn: spec.forced.len(),
                drawn_in: None,
            });
        }
        step.admissions.append(&mut admissions);
        Some(Self {
            request: request.clone(),
            outputs,
            shared,
            shared_fed: 0,
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
            }
            self.shared_fed += count;
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
        self.outputs.iter().all(Option::is_none)
    }

    /// Rows that are still to be planned.
    pub fn remaining_rows(&self) -> usize {
        let streams = self
            .outputs
            .iter()
            .flatten()
            .flat_map(|output| &output.streams);
        let own: usize = streams.map(|stream| stream.rows - stream.fed).sum();
        self.shared - self.shared_fed + own
    }
}
