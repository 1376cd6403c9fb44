//! The scheduler: a queue, the running requests, and the steps in flight.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use super::{
    event::{AbortReason, Event, FinishReason},
    pool::Pool,
    request::{Mode, Request, RequestId},
    running::{Needs, Running},
    step::Step,
};
use crate::{Error, Result, sampling::Drawn};

/// Limits of a scheduler; all at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Rows a step, at least `max_sequences`, so that decoding never waits for prefill.
    pub max_rows: usize,
    /// Sequences that run at once; a guided output takes two.
    pub max_sequences: usize,
    /// Requests that wait.
    pub max_queue: usize,
    /// K/V blocks in the pool.
    pub blocks: usize,
    /// Positions a block.
    pub block_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
}

/// A token that a step in flight will draw.
#[derive(Debug)]
struct Expected {
    request: RequestId,
    output: usize,
    n: u32,
}

/// Plans steps. Feed it requests and the tokens drawn; it never blocks and keeps no time.
///
/// Any number of steps may be planned ahead of the results: a row's token may still be on the
/// device. Steps must run, and results arrive, in the order planned.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    blocks: Pool,
    slots: Pool,
    arrivals: u64,
    steps: u64,
    queue: BTreeMap<(i32, u64), Request>,
    running: BTreeMap<(i32, u64), Running>,
    in_flight: VecDeque<(u64, Vec<Expected>)>,
    events: Vec<Event>,
}

impl Scheduler {
    /// An idle scheduler.
    pub fn new(config: SchedulerConfig) -> Self {
        assert!(config.max_rows >= config.max_sequences && config.max_sequences > 0);
        assert!(config.block_size > 0);
        Self {
            config,
            blocks: Pool::new(config.blocks),
            slots: Pool::new(config.max_sequences),
            arrivals: 0,
            steps: 0,
            queue: BTreeMap::new(),
            running: BTreeMap::new(),
            in_flight: VecDeque::new(),
            events: Vec::new(),
        }
    }

    /// Its limits.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::BadInput`] if it can never run, [`Error::Capacity`] if the queue is full; nothing
    /// is kept then.
    pub fn submit(&mut self, request: Request) -> Result<()> {
        self.check(&request)?;
        if self.queue.len() >= self.config.max_queue {
            return Err(Error::Capacity {
                what: "queue",
                limit: format!("{} requests", self.config.max_queue),
                needed: format!("{} rows are ahead", self.backlog_rows()),
            });
        }
        self.arrivals += 1;
        self.queue
            .insert((request.priority, self.arrivals), request);
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<()> {
        request.sampling.validate()?;
        let positions = request
            .prompt
            .len()
            .max(request.negative_prompt.as_ref().map_or(0, Vec::len))
            + request.max_tokens;
        let limit = self.config.max_positions;
        if request.prompt.is_empty() || request.max_tokens == 0 {
            return Err(Error::bad_input("prompt", "must not be empty", ""));
        }
        if positions > limit {
            let limit = format!("prompt and output must be at most {limit} tokens together");
            return Err(Error::bad_input(
                "prompt",
                limit,
                format!("{positions} tokens"),
            ));
        }
        if request.outputs.is_empty() {
            return Err(Error::bad_input("n", "must be at least 1", 0));
        }
        if request.sampling.guided() != request.negative_prompt.is_some() {
            let limit = "needs an unconditional prompt exactly if it is not 1";
            let value = request.sampling.guidance_scale;
            return Err(Error::bad_input("guidance_scale", limit, value));
        }
        if let Some(long) = request
            .outputs
            .iter()
            .find(|o| o.forced.len() > request.max_tokens)
        {
            let limit = format!("must be at most {} tokens", request.max_tokens);
            return Err(Error::bad_input("forced prefix", limit, long.forced.len()));
        }
        let needs = Needs::of(request, self.config.block_size);
        if needs.slots > self.config.max_sequences {
            let limit = format!("must need at most {} sequences", self.config.max_sequences);
            return Err(Error::bad_input(
                "n",
                limit,
                format!("{} sequences", needs.slots),
            ));
        }
        if needs.blocks > self.config.blocks {
            let limit = format!("must need at most {} K/V blocks", self.config.blocks);
            return Err(Error::bad_input(
                "n",
                limit,
                format!("{} blocks", needs.blocks),
            ));
        }
        Ok(())
    }

    /// Ends a request, wherever it is; its memory is free at once. Unknown ids are ignored.
    pub fn cancel(&mut self, id: RequestId) {
        self.abort(|request| request.id == id, AbortReason::Cancelled);
    }

    fn abort(&mut self, mut is_victim: impl FnMut(&Request) -> bool, reason: AbortReason) {
        let Self {
            queue,
            running,
            events,
            ..
        } = self;
        let mut ended = |request: &Request| {
            let ends = is_victim(request);
            if ends {
                events.push(Event::Aborted {
                    request: request.id,
                    reason,
                });
            }
            ends
        };
        queue.retain(|_, request| !ended(request));
        running.retain(|_, running| !ended(&running.request));
    }

    /// The next step, or `None` if there is nothing to run. `now` is compared with deadlines.
    ///
    /// Every output that can draw does; the rows that are left go to prefill, in order of
    /// priority and arrival.
    pub fn plan(&mut self, now: Instant) -> Option<Step> {
        let late = |request: &Request| request.deadline.is_some_and(|deadline| deadline <= now);
        self.abort(late, AbortReason::Deadline);
        let mut step = Step {
            id: self.steps,
            ..Step::default()
        };
        self.admit(&mut step);
        let mut expected = Vec::new();
        let max_rows = self.config.max_rows;
        let mut draw = |running: &mut Running, step: &mut Step| {
            let request = running.request.id;
            let drawn = running.plan_draws(max_rows, step).into_iter();
            expected.extend(drawn.map(|(output, n)| Expected { request, output, n }));
        };
        for running in self.running.values_mut() {
            draw(running, &mut step);
        }
        for running in self.running.values_mut() {
            running.plan_prefill(max_rows, &mut step);
            draw(running, &mut step);
        }
        if step.rows.is_empty() {
            debug_assert!(
                step.admissions.is_empty(),
                "an admitted request always has rows"
            );
            return None;
        }
        self.steps += 1;
        self.in_flight.push_back((step.id, expected));
        Some(step)
    }

    /// Starts waiting requests in order while the first of them fits.
    fn admit(&mut self, step: &mut Step) {
        while let Some(entry) = self.queue.first_entry() {
            let block_size = self.config.block_size;
            let Some(mut running) =
                Running::admit(entry.get(), &self.blocks, &self.slots, block_size, step)
            else {
                return;
            };
            let (key, request) = entry.remove_entry();
            for (output, spec) in request.outputs.iter().enumerate() {
                if spec.forced.len() == request.max_tokens {
                    let reason = FinishReason::Length;
                    self.events.push(Event::Finished {
                        request: request.id,
                        output,
                        reason,
                    });
                    running.finish(output);
                }
            }
            if !running.done() {
                self.running.insert(key, running);
            }
        }
    }

    /// Takes the tokens of the oldest step in flight, one for each of its samples, in order.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if they do not belong to that step.
    pub fn on_done(&mut self, step: u64, drawn: &[(u32, Drawn)]) -> Result<()> {
        let expected = match self.in_flight.pop_front() {
            Some((id, expected)) if id == step && expected.len() == drawn.len() => expected,
            other => {
                let oldest = other.map(|(id, expected)| (id, expected.len()));
                let got = (step, drawn.len());
                return Err(Error::GroupLost(format!(
                    "step and tokens {got:?} do not match the oldest in flight, {oldest:?}"
                )));
            }
        };
        for (Expected { request, output, n }, &(token, drawn)) in expected.into_iter().zip(drawn) {
            self.on_token(request, output, n, token, drawn.log_prob);
        }
        Ok(())
    }

    fn on_token(&mut self, request: RequestId, output: usize, n: u32, token: u32, log_prob: f32) {
        let found = self
            .running
            .iter_mut()
            .find(|(_, running)| running.request.id == request);
        let Some((&key, running)) = found else { return };
        if !running.is_live(output) {
            return;
        }
        self.events.push(Event::Token {
            request,
            output,
            n,
            token,
            log_prob,
        });
        let spec = &running.request;
        let reason = if spec.mode == Mode::Text && spec.stop_ids.contains(&token) {
            FinishReason::Stop
        } else if n as usize + 1 == spec.max_tokens {
            FinishReason::Length
        } else {
            return;
        };
        self.events.push(Event::Finished {
            request,
            output,
            reason,
        });
        running.finish(output);
        if running.done() {
            self.running.remove(&key);
        }
    }

    /// What happened since the last call, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Steps planned whose tokens have not arrived.
    pub fn steps_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Requests that wait, and requests that run.
    pub fn load(&self) -> (usize, usize) {
        (self.queue.len(), self.running.len())
    }

    /// Rows still to be planned for all accepted requests: the known backlog.
    pub fn backlog_rows(&self) -> usize {
        let queued = |request: &Request| {
            let streams = 1 + usize::from(request.negative_prompt.is_some());
            let positions = request.prompt.len() + request.max_tokens;
            request.outputs.len() * streams * positions
        };
        self.queue.values().map(queued).sum::<usize>()
            + self
                .running
                .values()
                .map(Running::remaining_rows)
                .sum::<usize>()
    }

    /// Free K/V blocks and free slots.
    pub fn available(&self) -> (usize, usize) {
        (self.blocks.available(), self.slots.available())
    }
}
