//! Runs of a fixture's backbone through scheduler and ranks.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use xomni_engine::{
    checkpoint::{BackboneConfig, Weights, XOmniConfig},
    group::{GroupConfig, ThreadGroup},
    ops::{StepPlan, cpu::Cpu},
    sampling::SamplingParams,
    schedule::{
        Event, Mode, OutputSpec, Request, RequestId, Scheduler, SchedulerConfig, TokenSource,
    },
    text::Tokenizer,
};

use crate::golden::Fixture;

/// Limits that hold every request of a test.
pub const ROOMY: SchedulerConfig = SchedulerConfig {
    max_rows: 64,
    max_sequences: 32,
    max_queue: 1000,
    blocks: 2048,
    block_size: 16,
    max_positions: 8192,
    vocabulary: usize::MAX,
};

/// A fixture's configuration and tokenizer.
pub struct Model {
    /// Where the weights are.
    pub fixture: Fixture,
    /// `config.json`.
    pub config: XOmniConfig,
    /// The backbone's tokenizer.
    pub tokenizer: Tokenizer,
}

/// What one output of a request came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// Token ids drawn, in order.
    pub tokens: Vec<u32>,
    /// Log-probability of each.
    pub log_probs: Vec<f32>,
    /// Raw logits of each draw: conditional, then unconditional where guided.
    pub logits: Vec<Vec<Vec<f32>>>,
}

/// Outputs by request and index.
pub type Outputs = BTreeMap<(RequestId, usize), Output>;

impl Model {
    /// Opens the fixture that `XOMNI_GOLDEN` names.
    pub fn open() -> Self {
        Self::of(Fixture::open())
    }

    /// Opens a fixture.
    pub fn of(fixture: Fixture) -> Self {
        let config = XOmniConfig::open(&fixture.x_omni()).expect("config.json");
        let tokenizer = Tokenizer::open(&fixture.x_omni(), &config).expect("tokenizer");
        Self {
            fixture,
            config,
            tokenizer,
        }
    }

    /// The backbone's weights.
    pub fn weights(&self) -> Weights {
        Weights::open_safetensors(&self.fixture.x_omni(), "model").expect("backbone weights")
    }

    /// A group of `ranks` threads over the fixture's weights.
    pub fn group(&self, ranks: usize, limits: SchedulerConfig) -> ThreadGroup {
        start_group(&self.config.backbone, self.weights(), ranks, limits)
    }

    /// Runs requests, all submitted at once, to their ends.
    pub fn run(&self, ranks: usize, limits: SchedulerConfig, requests: &[Request]) -> Outputs {
        let arrivals: Vec<_> = requests
            .iter()
            .map(|request| (0, request.clone()))
            .collect();
        run_arrivals(&mut self.group(ranks, limits), limits, arrivals)
    }
}

/// A group of `ranks` threads that keeps its logits.
pub fn start_group(
    config: &BackboneConfig,
    weights: Weights,
    ranks: usize,
    limits: SchedulerConfig,
) -> ThreadGroup {
    let group = GroupConfig {
        ranks,
        max_rows: limits.max_rows,
        blocks: limits.blocks,
        block_size: limits.block_size,
        slots: limits.max_sequences,
        suppressed: vec![],
        keep_logits: true,
    };
    ThreadGroup::start(&Arc::new(Cpu::new()), config, weights, &group).expect("group")
}

/// Runs requests that arrive before the given step each, to their ends.
pub fn run_arrivals(
    group: &mut ThreadGroup,
    limits: SchedulerConfig,
    mut arrivals: Vec<(usize, Request)>,
) -> Outputs {
    let mut scheduler = Scheduler::new(limits);
    let mut outputs = Outputs::new();
    let mut steps = 0;
    loop {
        arrivals.retain(|(at, request)| {
            let waits = *at > steps;
            if !waits {
                scheduler.submit(request.clone()).expect("accepted");
            }
            waits
        });
        steps += 1;
        let Some(step) = scheduler.plan(Instant::now()) else {
            if arrivals.is_empty() {
                assert_eq!(scheduler.available(), (limits.blocks, limits.max_sequences));
                return outputs;
            }
            continue;
        };
        let mut done = group.run(Arc::new(step)).expect("step");
        scheduler.on_done(done.step, &done.drawn).expect("in order");
        let mut logits = done.logits.drain(..);
        for event in scheduler.take_events() {
            if let Event::Token {
                request,
                output,
                token,
                log_prob,
                ..
            } = event
            {
                let output = outputs.entry((request, output)).or_default();
                output.tokens.push(token);
                output.log_probs.extend(log_prob);
                output
                    .logits
                    .push(logits.next().expect("logits of every draw"));
            }
        }
    }
}

/// The step that runs all of `ids`, a new sequence in slot 0, and picks every row for `mode`.
pub fn prefill(ids: &[u32], table: &[u32], mode: Mode) -> StepPlan {
    let mut plan = StepPlan {
        admitted: vec![(0, table.into())],
        slots: vec![0; ids.len()],
        tokens: ids.iter().map(|&id| TokenSource::Known(id)).collect(),
        positions: (0..ids.len() as u32).collect(),
        ..StepPlan::default()
    };
    *plan.picked.of_mut(mode) = plan.positions.clone();
    plan
}

/// A request for one image output, unguided and greedy.
pub fn greedy_image(id: RequestId, prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        id,
        priority: 0,
        mode: Mode::Image,
        prompt,
        negative_prompt: None,
        sampling: SamplingParams::GREEDY,
        seed: 0,
        outputs: vec![OutputSpec {
            image_index: 0,
            forced: vec![],
        }],
        max_tokens,
        stop_ids: vec![],
        deadline: None,
        log_probs: true,
    }
}
