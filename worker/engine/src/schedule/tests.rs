//! The scheduler under random sequences of events, against a simulated device.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::sampling::{Drawn, SamplingParams};

mod waves;

const TEXT_VOCAB: u32 = 1000;

fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_rows: 16,
        max_sequences: 6,
        max_queue: 8,
        blocks: 40,
        block_size: 4,
        max_positions: 64,
        vocabulary: TEXT_VOCAB as usize + 1,
    }
}

fn request(id: RequestId, prompt: usize, outputs: usize, max_tokens: usize) -> Request {
    Request {
        id,
        priority: 0,
        mode: Mode::Image,
        prompt: (0..prompt as u32).map(|p| p * 7 + id as u32).collect(),
        negative_prompt: None,
        sampling: SamplingParams::GREEDY,
        seed: id,
        outputs: (0..outputs as u32)
            .map(|image_index| OutputSpec {
                image_index,
                forced: vec![],
            })
            .collect(),
        max_tokens,
        stop_ids: vec![],
        deadline: None,
        log_probs: false,
    }
}

/// Checks every step against the rules of a device: written before read, one draw a sequence a
/// step, tables disjoint but for shared prompts, drawn tokens only after a draw.
#[derive(Default)]
struct Device {
    slots: HashMap<Slot, Sequence>,
    /// What was last written to each (block, offset): the tokens up to that position.
    memory: HashMap<(u32, usize), Vec<u32>>,
}

struct Sequence {
    admission: Admission,
    tokens: Vec<u32>,
    last: Option<u32>,
}

impl Device {
    /// Token ids are a function of the whole past, so that a wrong past is a wrong token.
    fn token_after(past: &[u32], seed: u64, image_index: u32) -> u32 {
        let mix = |hash: u32, token: &u32| hash.wrapping_mul(31).wrapping_add(*token);
        past.iter().fold(seed as u32 * 97 + image_index, mix) % 50
    }

    fn run(&mut self, step: &Step, block_size: usize) -> Vec<Option<(u32, Drawn)>> {
        for admission in &step.admissions {
            let sequence = Sequence {
                admission: admission.clone(),
                tokens: vec![],
                last: None,
            };
            self.slots.insert(admission.slot, sequence);
        }
        let mut pasts = Vec::new();
        for row in &step.rows {
            let sequence = self
                .slots
                .get_mut(&row.slot)
                .expect("row of an admitted slot");
            let token = match row.token {
                TokenSource::Known(token) => token,
                TokenSource::Drawn => sequence.last.expect("a token was drawn"),
            };
            let position = row.position as usize;
            let at = |p: usize| (sequence.admission.table[p / block_size], p % block_size);
            let mut past = match position {
                0 => vec![],
                _ => self
                    .memory
                    .get(&at(position - 1))
                    .expect("past was written")
                    .clone(),
            };
            assert_eq!(past.len(), position, "position follows its past");
            past.push(token);
            self.memory.insert(at(position), past.clone());
            sequence.tokens.clone_from(&past);
            pasts.push(past);
        }
        let mut seen = std::collections::HashSet::new();
        let draw = |sample: &Sample| {
            let row = step.rows[sample.row as usize];
            let sequence = &self.slots[&row.slot];
            assert!(seen.insert(row.slot), "one draw a sequence a step");
            let setup = sequence
                .admission
                .draw
                .as_ref()
                .expect("draws from conditional slots");
            let past = &pasts[sample.row as usize];
            let token = Self::token_after(past, setup.seed, setup.image_index);
            let log_prob = setup.log_prob.then_some(-1.0);
            Some((
                token,
                Drawn {
                    index: token,
                    log_prob,
                },
            ))
        };
        let drawn: Vec<_> = step.samples.iter().map(draw).collect();
        for (sample, (token, _)) in step.samples.iter().zip(drawn.iter().flatten()) {
            for row in [Some(sample.row), sample.uncond_row].into_iter().flatten() {
                let slot = step.rows[row as usize].slot;
                if let Some(sequence) = self.slots.get_mut(&slot) {
                    sequence.last = Some(*token);
                }
            }
        }
        drawn
    }
}

/// Tokens that `request` must yield, computed without any scheduler.
fn expected_tokens(request: &Request, output: usize) -> Vec<u32> {
    let spec = &request.outputs[output];
    let mut past: Vec<u32> = request.prompt.iter().chain(&spec.forced).copied().collect();
    let mut tokens = vec![];
    for _ in spec.forced.len()..request.max_tokens {
        let token = Device::token_after(&past, request.seed, spec.image_index);
        past.push(token);
        tokens.push(token);
        if request.stop_ids.contains(&token) && request.mode == Mode::Text {
            break;
        }
    }
    tokens
}

#[derive(Debug, Clone)]
enum Action {
    Submit {
        prompt: usize,
        outputs: usize,
        tokens: usize,
        forced: usize,
        priority: i32,
        kind: u8,
    },
    Cancel(u64),
    Plan,
    Done,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => (1usize..30, 1usize..8, 1usize..12, 0usize..12, 0i32..3, 0u8..4).prop_map(
            |(prompt, outputs, tokens, forced, priority, kind)| Action::Submit {
                prompt, outputs, tokens, forced: forced.min(tokens), priority, kind,
            }
        ),
        1 => (1u64..12).prop_map(Action::Cancel),
        8 => Just(Action::Plan),
        6 => Just(Action::Done),
    ]
}

#[derive(Default)]
struct Seen {
    admitted: BTreeSet<(RequestId, usize)>,
    tokens: BTreeMap<(RequestId, usize), Vec<u32>>,
    finished: BTreeMap<(RequestId, usize), FinishReason>,
    aborted: BTreeMap<RequestId, AbortReason>,
}

impl Seen {
    fn record(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Admitted { request, output } => {
                    assert!(self.admitted.insert((request, output)), "admitted twice");
                }
                Event::Token {
                    request,
                    output,
                    token,
                    ..
                } => {
                    assert!(self.admitted.contains(&(request, output)));
                    assert!(
                        !self.finished.contains_key(&(request, output)),
                        "token after the end"
                    );
                    self.tokens
                        .entry((request, output))
                        .or_default()
                        .push(token);
                }
                Event::Finished {
                    request,
                    output,
                    reason,
                } => {
                    assert!(self.finished.insert((request, output), reason).is_none());
                }
                Event::Aborted { request, reason } => {
                    assert!(self.aborted.insert(request, reason).is_none());
                }
            }
        }
    }
}

fn drain(scheduler: &mut Scheduler, device: &mut Device, seen: &mut Seen) {
    let block_size = scheduler.config().block_size;
    while let Some(step) = scheduler.plan(Instant::now()) {
        let drawn = device.run(&step, block_size);
        scheduler.on_done(step.id, &drawn).expect("in order");
        seen.record(scheduler.take_events());
    }
    seen.record(scheduler.take_events());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Tokens follow from each request alone, every request ends once, and in the end all
    /// blocks and slots are free, whatever happened, however far planning ran ahead, and though
    /// there may be room for one output of a request only.
    #[test]
    fn any_history_yields_the_same_tokens_and_frees_everything(
        actions in proptest::collection::vec(action(), 1..80),
        blocks in 17usize..50,
        max_sequences in 2usize..10,
    ) {
        let config = || SchedulerConfig { blocks, max_sequences, ..config() };
        let mut scheduler = Scheduler::new(config());
        let mut device = Device::default();
        let mut seen = Seen::default();
        let mut accepted: BTreeMap<RequestId, Request> = BTreeMap::new();
        let mut waiting = std::collections::VecDeque::new();
        for (id, action) in (1u64..).zip(actions) {
            match action {
                Action::Submit { prompt, outputs, tokens, forced, priority, kind } => {
                    let mut new = request(id, prompt, outputs, tokens);
                    new.priority = priority;
                    if kind == 1 {
                        new.mode = Mode::Text;
                        new.stop_ids = vec![1, 2, 3, 5, 8, 13, 21, 34];
                    }
                    if kind == 2 {
                        new.negative_prompt = Some(vec![TEXT_VOCAB; 3]);
                        new.sampling.guidance_scale = 2.0;
                    }
                    for output in 0..outputs {
                        let all = expected_tokens(&new, output);
                        if kind != 1 && output % 2 == 0 {
                            new.outputs[output].forced = all[..forced].to_vec();
                        }
                    }
                    if scheduler.submit(new.clone()).is_ok() {
                        accepted.insert(id, new);
                    }
                }
                Action::Cancel(id) => scheduler.cancel(id),
                Action::Plan => {
                    if let Some(step) = scheduler.plan(Instant::now()) {
                        prop_assert!(step.rows.len() <= config().max_rows);
                        waiting.push_back((step.id, device.run(&step, config().block_size)));
                    }
                }
                Action::Done => {
                    if let Some((step, drawn)) = waiting.pop_front() {
                        scheduler.on_done(step, &drawn).expect("in order");
                    }
                }
            }
            seen.record(scheduler.take_events());
        }
        for (step, drawn) in waiting {
            scheduler.on_done(step, &drawn).expect("in order");
        }
        seen.record(scheduler.take_events());
        drain(&mut scheduler, &mut device, &mut seen);

        prop_assert_eq!(scheduler.available(), (config().blocks, config().max_sequences));
        prop_assert_eq!(scheduler.backlog_rows(), 0);
        prop_assert_eq!(scheduler.steps_in_flight(), 0);
        for (id, request) in &accepted {
            for output in 0..request.outputs.len() {
                let tokens = seen.tokens.remove(&(*id, output)).unwrap_or_default();
                let expected = expected_tokens(request, output);
                let finished = seen.finished.contains_key(&(*id, output));
                if finished {
                    prop_assert_eq!(tokens, expected);
                } else {
                    prop_assert!(seen.aborted.contains_key(id), "request {} never ended", id);
                    prop_assert!(expected.starts_with(&tokens));
                }
            }
        }
        prop_assert!(seen.tokens.is_empty(), "tokens of requests that were refused");
    }
}

#[test]
fn shares_the_full_prompt_blocks_of_one_request() {
    let mut scheduler = Scheduler::new(config());
    scheduler.submit(request(1, 13, 3, 3)).expect("fits");
    scheduler.plan(Instant::now()).expect("work");
    // 12 of 13 prompt positions in 3 shared blocks, then 1 + 3 positions in 1 block an output.
    assert_eq!(scheduler.available(), (40 - 3 - 3, 6 - 3));
}

#[test]
fn a_lower_priority_number_runs_first() {
    let mut scheduler = Scheduler::new(config());
    let mut device = Device::default();
    for (id, priority) in [(1, 5), (2, 5), (3, -1)] {
        scheduler
            .submit(Request {
                priority,
                ..request(id, 4, 4, 4)
            })
            .expect("fits");
    }
    let mut order = vec![];
    while let Some(step) = scheduler.plan(Instant::now()) {
        let drawn = device.run(&step, 4);
        scheduler.on_done(step.id, &drawn).expect("in order");
        for event in scheduler.take_events() {
            if let Event::Finished {
                request, output: 0, ..
            } = event
            {
                order.push(request);
            }
        }
    }
    assert_eq!(order, [3, 1, 2]);
}

#[test]
fn a_passed_deadline_ends_queued_and_running_requests() {
    let mut scheduler = Scheduler::new(config());
    let now = Instant::now();
    let deadline = Some(now + Duration::from_secs(1));
    scheduler
        .submit(Request {
            deadline,
            ..request(1, 4, 1, 4)
        })
        .expect("fits");
    assert!(scheduler.plan(now).is_some());
    let (request_1, output) = (1, 0);
    let admitted = Event::Admitted {
        request: request_1,
        output,
    };
    assert_eq!(scheduler.take_events(), [admitted]);
    scheduler
        .submit(Request {
            deadline,
            ..request(2, 4, 1, 4)
        })
        .expect("fits");
    assert!(scheduler.plan(now + Duration::from_secs(2)).is_none());
    let reason = AbortReason::Deadline;
    let ended: Vec<_> = [2, 1]
        .map(|request| Event::Aborted { request, reason })
        .into();
    assert_eq!(scheduler.take_events(), ended);
    assert_eq!(scheduler.available(), (40, 6));
}

#[test]
fn refuses_what_can_never_run_and_what_does_not_fit_now() {
    let mut scheduler = Scheduler::new(config());
    let refused = |result: crate::Result<()>| match result {
        Err(crate::Error::BadInput { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(scheduler.submit(request(1, 60, 1, 5))), "prompt");
    assert_eq!(refused(scheduler.submit(request(1, 0, 1, 5))), "prompt");
    assert_eq!(refused(scheduler.submit(request(1, 4, 0, 5))), "n");
    let long = request(1, 4, 1, usize::MAX);
    assert_eq!(refused(scheduler.submit(long)), "prompt");
    let mut unknown = request(1, 4, 2, 5);
    unknown.prompt[3] = TEXT_VOCAB + 1;
    assert_eq!(refused(scheduler.submit(unknown)), "prompt");
    let mut unknown = request(1, 4, 2, 5);
    unknown.outputs[1].forced = vec![u32::MAX];
    assert_eq!(refused(scheduler.submit(unknown)), "forced prefix");
    let mut unknown = request(1, 4, 2, 5);
    unknown.negative_prompt = Some(vec![TEXT_VOCAB + 1]);
    unknown.sampling.guidance_scale = 2.0;
    assert_eq!(refused(scheduler.submit(unknown)), "negative prompt");
    for id in 0..8 {
        scheduler
            .submit(request(id, 4, 1, 4))
            .expect("queue has room");
    }
    let full = scheduler.submit(request(9, 4, 1, 4));
    assert!(
        matches!(full, Err(crate::Error::Capacity { what: "queue", .. })),
        "{full:?}"
    );
}

#[test]
fn refuses_tokens_of_another_step() {
    let mut scheduler = Scheduler::new(config());
    scheduler.submit(request(1, 4, 1, 4)).expect("fits");
    let step = scheduler.plan(Instant::now()).expect("work");
    assert!(scheduler.on_done(step.id + 1, &[]).is_err());
}

#[test]
fn a_request_without_finite_scores_ends_alone() {
    let mut scheduler = Scheduler::new(config());
    let mut device = Device::default();
    for id in [1, 2] {
        scheduler.submit(request(id, 4, 2, 4)).expect("fits");
    }
    let step = scheduler.plan(Instant::now()).expect("work");
    let ahead = scheduler.plan(Instant::now()).expect("work");
    let mut drawn = device.run(&step, 4);
    let ahead_drawn = device.run(&ahead, 4);
    drawn[1] = None;
    scheduler.on_done(step.id, &drawn).expect("in order");
    scheduler.on_done(ahead.id, &ahead_drawn).expect("in order");
    let mut seen = Seen::default();
    seen.record(scheduler.take_events());
    drain(&mut scheduler, &mut device, &mut seen);
    let reason = AbortReason::NotFinite { output: 1, n: 0 };
    assert_eq!(seen.aborted, BTreeMap::from([(1, reason)]));
    assert_eq!(seen.tokens[&(1, 0)].len(), 1);
    let finished: Vec<_> = seen.finished.keys().copied().collect();
    assert_eq!(finished, [(2, 0), (2, 1)]);
    assert_eq!(scheduler.available(), (40, 6));
}
