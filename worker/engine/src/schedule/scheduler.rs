//! The scheduler: a queue, the running requests, and the steps in flight.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use super::{
    event::{AbortReason, Event, FinishReason},
    pool::Pool,
    request::{Mode, OutputSpec, Request, RequestId},
    running::{Needs, Running, output_rows},
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
    /// Token ids are below it.
    pub vocabulary: usize,
}

impl SchedulerConfig {
    /// Refuses a request that no scheduler of these limits can ever run.
    ///
    /// # Errors
    /// [`Error::BadInput`] naming the field, its limit and the value.
    pub fn check(&self, request: &Request) -> Result<()> {
        request.sampling.validate()?;
        if request.prompt.is_empty() || request.max_tokens == 0 {
            return Err(Error::bad_input("prompt", "must not be empty", ""));
        }
        if request.outputs.is_empty() {
            return Err(Error::bad_input("n", "must be at least 1", 0));
        }
        if request.sampling.guided() != request.negative_prompt.is_some() {
            let limit = "needs an unconditional prompt exactly if it is not 1";
            let value = request.sampling.guidance_scale;
            return Err(Error::bad_input("guidance_scale", limit, value));
        }
        let negative = request.negative_prompt.as_deref().unwrap_or_default();
        let positions = request.prompt.len().max(negative.len());
        let positions = positions.saturating_add(request.max_tokens);
        let limit = self.max_positions;
        if positions > limit {
            let limit = format!("prompt and output must be at most {limit} tokens together");
            let value = format!("{positions} tokens");
            return Err(Error::bad_input("prompt", limit, value));
        }
        for spec in &request.outputs {
            if spec.forced.len() > request.max_tokens {
                let limit = format!("must be at most {} tokens", request.max_tokens);
                return Err(Error::bad_input("forced prefix", limit, spec.forced.len()));
            }
            self.check_ids("forced prefix", &spec.forced)?;
        }
        self.check_ids("prompt", &request.prompt)?;
        self.check_ids("negative prompt", negative)?;
        self.check_needs(request)
    }

    fn check_ids(&self, field: &'static str, ids: &[u32]) -> Result<()> {
        let vocabulary = self.vocabulary;
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            None => Ok(()),
            Some(id) => {
                let limit = format!("token ids must be below {vocabulary}");
                Err(Error::bad_input(field, limit, id))
            }
        }
    }

    /// Refuses a request of which not even one output at a time fits.
    fn check_needs(&self, request: &Request) -> Result<()> {
        let needs = Needs::of_output(request, self.block_size);
        if needs.slots > self.max_sequences {
            let limit = format!("must need at most {} sequences", self.max_sequences);
            let value = format!("{} sequences", needs.slots);
            return Err(Error::bad_input("guidance_scale", limit, value));
        }
        if needs.blocks > self.blocks {
            let field = match request.mode {
                Mode::Image => "size",
                Mode::Text => "prompt",
            };
            let size = self.block_size;
            let limit = format!(
                "the K/V memory has {} blocks of {size} positions",
                self.blocks
            );
            let value = format!(
                "{} blocks for one output of {} positions",
                needs.blocks,
                request.prompt.len() + request.max_tokens
            );
            return Err(Error::bad_input(field, limit, value));
        }
        Ok(())
    }
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
        self.config.check(&request)?;
        if self.queue.len() >= self.config.max_queue {
            return Err(Error::Capacity {
                what: "queue",
                limit: format!("{} requests", self.config.max_queue),
                needed: format!("{} rows are ahead", self.backlog_rows()),
                retry_after: None,
            });
        }
        self.arrivals += 1;
        self.queue
            .insert((request.priority, self.arrivals), request);
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

    /// Starts waiting outputs in order of priority and arrival while the next of them fits: those
    /// of requests that run in part, and those of requests in the queue.
    fn admit(&mut self, step: &mut Step) {
        let block_size = self.config.block_size;
        loop {
            let in_part = self.running.iter().find(|(_, running)| running.waits());
            let in_part = in_part.map(|(&key, _)| key);
            let queued = self.queue.first_key_value().map(|(&key, _)| key);
            let Some(next) = in_part.into_iter().chain(queued).min() else {
                return;
            };
            if Some(next) == queued {
                let Some(entry) = self.queue.first_entry() else {
                    return;
                };
                let needs = Needs::of_output(entry.get(), block_size);
                let fits = needs.available(&self.blocks, &self.slots);
                if !fits && !is_drawn(entry.get()) {
                    return;
                }
                let running = Running::new(entry.remove(), block_size);
                self.finish_forced(&running.request);
                if !running.waits() {
                    continue;
                }
                self.running.insert(next, running);
            }
            let Some(running) = self.running.get_mut(&next) else {
                return;
            };
            let request = running.request.id;
            let admitted = running.admit(&self.blocks, &self.slots, block_size, step);
            let admitted = admitted.into_iter();
            self.events
                .extend(admitted.map(|output| Event::Admitted { request, output }));
            if running.waits() {
                return;
            }
        }
    }

    /// Ends the outputs whose tokens were all known.
    fn finish_forced(&mut self, request: &Request) {
        for (output, spec) in request.outputs.iter().enumerate() {
            if spec.forced.len() == request.max_tokens {
                self.events.push(Event::Finished {
                    request: request.id,
                    output,
                    reason: FinishReason::Length,
                });
            }
        }
    }

    /// Takes the tokens of the oldest step in flight, one for each of its samples, in order. A
    /// request whose model gave no scores to draw from ends alone.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if they do not belong to that step.
    pub fn on_done(&mut self, step: u64, drawn: &[Option<(u32, Drawn)>]) -> Result<()> {
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
        for (Expected { request, output, n }, drawn) in expected.into_iter().zip(drawn) {
            match *drawn {
                Some((token, drawn)) => self.on_token(request, output, n, token, drawn.log_prob),
                None => self.on_nothing(request, output, n),
            }
        }
        Ok(())
    }

    fn on_nothing(&mut self, request: RequestId, output: usize, n: u32) {
        let live = |running: &Running| running.request.id == request && running.is_live(output);
        if self.running.values().any(live) {
            let reason = AbortReason::NotFinite { output, n };
            self.abort(|victim| victim.id == request, reason);
        }
    }

    fn on_token(
        &mut self,
        request: RequestId,
        output: usize,
        n: u32,
        token: u32,
        log_prob: Option<f32>,
    ) {
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
        let queued = |request: &Request| request.outputs.len() * output_rows(request);
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

/// Whether every token of `request` is known.
fn is_drawn(request: &Request) -> bool {
    let drawn = |output: &OutputSpec| output.forced.len() == request.max_tokens;
    request.outputs.iter().all(drawn)
}
