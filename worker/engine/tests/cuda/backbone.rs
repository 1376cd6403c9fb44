//! Whole steps: a request gives bitwise the same tokens and logits alone or among others, recorded or not, in any chunking of
//! its prefill, resumed from any prefix, and on 1, 2 or 4 ranks; and close to the CPU's.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use xomni_engine::{
    Result,
    checkpoint::{BackboneConfig, Weights},
    group::{GroupConfig, ThreadGroup},
    ops::{KvLayout, TransformerOps, cpu::Cpu, cuda::Precision},
    sampling::SamplingParams,
    schedule::{Event, Mode, OutputSpec, Request, RequestId, Scheduler, SchedulerConfig},
};

use crate::support::*;

pub const ROOMY: SchedulerConfig = SchedulerConfig {
    max_rows: 64,
    max_sequences: 32,
    max_queue: 1000,
    blocks: 2048,
    block_size: 16,
    max_positions: 2048,
    vocabulary: usize::MAX,
};

/// Tokens of an output, and the bits of their log-probabilities and logits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    pub tokens: Vec<u32>,
    pub log_probs: Vec<u32>,
    pub logits: Vec<Vec<Vec<f32>>>,
}

pub type Outputs = BTreeMap<(RequestId, usize), Output>;

pub fn start<O: TransformerOps>(
    ops: O,
    config: &BackboneConfig,
    weights: Weights,
    ranks: usize,
    limits: SchedulerConfig,
    keep_logits: bool,
) -> ThreadGroup {
    let group = sizes(ranks, limits, keep_logits);
    ThreadGroup::start(&Arc::new(ops), config, weights, &group).expect("group")
}

pub fn sizes(ranks: usize, limits: SchedulerConfig, keep_logits: bool) -> GroupConfig {
    GroupConfig {
        ranks,
        max_rows: limits.max_rows,
        blocks: limits.blocks,
        block_size: limits.block_size,
        slots: limits.max_sequences,
        suppressed: vec![1, 2],
        keep_logits,
    }
}

/// Runs requests that arrive before the given step each, planning `ahead` steps.
pub fn run(
    group: &ThreadGroup,
    limits: SchedulerConfig,
    ahead: usize,
    arrivals: Vec<(usize, Request)>,
) -> Outputs {
    try_run(group, limits, ahead, arrivals).expect("steps")
}

/// The same, where a step may fail.
pub fn try_run(
    group: &ThreadGroup,
    limits: SchedulerConfig,
    ahead: usize,
    mut arrivals: Vec<(usize, Request)>,
) -> Result<Outputs> {
    let mut scheduler = Scheduler::new(limits);
    let mut outputs = Outputs::new();
    let mut steps = 0;
    loop {
        while scheduler.steps_in_flight() < ahead {
            arrivals.retain(|(at, request)| {
                let waits = *at > steps;
                if !waits {
                    scheduler.submit(request.clone()).expect("accepted");
                }
                waits
            });
            steps += 1;
            match scheduler.plan(Instant::now()) {
                Some(step) => group.submit(&Arc::new(step))?,
                None => break,
            }
        }
        if scheduler.steps_in_flight() == 0 {
            if arrivals.is_empty() {
                return Ok(outputs);
            }
            continue;
        }
        let mut done = group.collect()?;
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
                output.log_probs.extend(log_prob.map(f32::to_bits));
                output.logits.extend(logits.next());
            }
        }
    }
}

pub fn config() -> BackboneConfig {
    BackboneConfig {
        text_vocab: 300,
        mm_vocab: 140,
        image_vocab: 130,
        hidden: 512,
        intermediate: 8 * 160,
        layers: 4,
        adapter_layers: 1,
        head_layers: 1,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        sliding_window: None,
        max_positions: 2048,
    }
}

/// Widths that nothing divides.
pub fn odd() -> BackboneConfig {
    BackboneConfig {
        hidden: 200,
        intermediate: 301,
        heads: 6,
        kv_heads: 3,
        head_dim: 32,
        sliding_window: Some(90),
        ..config()
    }
}

pub fn request(id: u64, prompt: usize, tokens: usize, kind: u64) -> Request {
    let guided = kind % 3 == 1;
    let text = kind % 3 == 2;
    Request {
        id,
        priority: 0,
        mode: if text { Mode::Text } else { Mode::Image },
        prompt: (0..prompt as u32)
            .map(|p| (p * 37 + id as u32 * 11) % 430)
            .collect(),
        negative_prompt: guided.then(|| vec![300, 3, 4]),
        sampling: SamplingParams {
            temperature: 0.9,
            top_k: 20,
            top_p: 0.95,
            min_p: 0.02,
            guidance_scale: if guided { 2.5 } else { 1.0 },
        },
        seed: id * 31,
        outputs: vec![OutputSpec {
            image_index: id as u32,
            forced: vec![],
        }],
        max_tokens: tokens,
        stop_ids: vec![],
        deadline: None,
        log_probs: true,
    }
}

#[test]
fn results_do_not_depend_on_neighbours_chunks_prefix_recording_or_ranks() {
    let _gpu = alone();
    for (name, config) in [("aligned", config()), ("odd", odd())] {
        let weights = || Weights::random(5, "backbone");
        let cuda = || gpu(Precision::Bf16);
        let requests: Vec<_> = (0..24u64)
            .map(|id| request(id, 1 + id as usize * 29 % 300, 12 + id as usize % 9, id))
            .collect();
        // Alone, one step at a time. The same group again and again, so that most steps are recorded ones.
        let group = start(cuda(), &config, weights(), 1, ROOMY, true);
        let mut alone = Outputs::new();
        for request in &requests {
            alone.extend(run(&group, ROOMY, 1, vec![(0, request.clone())]));
        }
        let again = run(&group, ROOMY, 1, vec![(0, requests[3].clone())]);
        let (again, first) = (&again[&(3, 0)], &alone[&(3, 0)]);
        assert_eq!(again.tokens, first.tokens, "{name}: two runs");
        assert_eq!(again.log_probs, first.log_probs, "{name}: two runs");
        let same = |(a, b): (&Vec<Vec<f32>>, &Vec<Vec<f32>>)| a == b;
        let differ = again
            .logits
            .iter()
            .zip(&first.logits)
            .position(|pair| !same(pair));
        assert_eq!(differ, None, "{name}: logits of two runs");
        drop(group);
        for (ranks, max_rows, ahead) in [(1, 300, 2), (1, 37, 3), (2, 64, 2), (4, 64, 1)] {
            let limits = SchedulerConfig { max_rows, ..ROOMY };
            let mut arrivals = Vec::new();
            for (number, request) in requests.iter().enumerate() {
                let mut request = request.clone();
                if number % 2 == 0 {
                    let drawn = &alone[&(request.id, 0)].tokens;
                    request.outputs[0].forced = drawn[..drawn.len() / 3].to_vec();
                }
                arrivals.push((number / 4, request));
            }
            // Logits need a wait after every step; without them steps follow each other.
            for keep_logits in [true, false] {
                let group = start(cuda(), &config, weights(), ranks, limits, keep_logits);
                let together = run(&group, limits, ahead, arrivals.clone());
                for (_, request) in &arrivals {
                    let known = request.outputs[0].forced.len();
                    let (got, want) = (&together[&(request.id, 0)], &alone[&(request.id, 0)]);
                    let what = format!(
                        "{name}: request {} on {ranks} ranks of {max_rows} rows",
                        request.id
                    );
                    assert_eq!(got.tokens, want.tokens[known..], "{what}");
                    assert_eq!(got.log_probs, want.log_probs[known..], "{what}");
                    if keep_logits && ahead == 1 {
                        assert_eq!(got.logits, want.logits[known..], "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn logits_are_close_to_those_of_the_cpu() {
    let _gpu = alone();
    for (name, config) in [("aligned", config()), ("odd", odd())] {
        let weights = || Weights::random(6, "backbone");
        for (kind, prompt) in [(0, 40), (2, 290)] {
            // One draw: after it the two may go different ways.
            let arrivals = vec![(0, request(1, prompt, 1, kind))];
            let cpu = start(Cpu::new(), &config, weights(), 1, ROOMY, true);
            let want = run(&cpu, ROOMY, 1, arrivals.clone());
            for (precision, tolerance) in [(Precision::F32, 3e-5), (Precision::Bf16, 2e-2)] {
                let group = start(gpu(precision), &config, weights(), 1, ROOMY, true);
                let got = run(&group, ROOMY, 1, arrivals.clone());
                let what = format!("{name}, kind {kind}, {precision:?}");
                let logits = |outputs: &Outputs| outputs[&(1, 0)].logits[0][0].clone();
                assert_close(&what, &logits(&got), &logits(&want), tolerance);
            }
        }
    }
}

#[test]
fn too_little_memory_says_how_much_there_is_and_was_needed() {
    let _gpu = alone();
    let layout = KvLayout {
        layers: 1000,
        kv_heads: 8,
        head_dim: 128,
        blocks: 1 << 20,
        block_size: 16,
    };
    let refused = gpu(Precision::Bf16).kv_cache(layout);
    let text = refused.expect_err("64 TiB").to_string();
    assert!(text.contains("MiB free of"), "{text}");
    assert!(
        text.contains("needed 65536000 MiB for keys and values"),
        "{text}"
    );
}
