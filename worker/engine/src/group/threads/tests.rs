use std::time::{Duration, Instant};

use super::*;
use crate::{
    ops::cpu::Cpu,
    sampling::SamplingParams,
    schedule::{Mode, OutputSpec, Request, Scheduler, SchedulerConfig},
};

const LIMITS: SchedulerConfig = SchedulerConfig {
    max_rows: 8,
    max_sequences: 4,
    max_queue: 4,
    blocks: 32,
    block_size: 4,
    max_positions: 64,
    vocabulary: 40,
};

fn ranks(size: usize, part: Range<usize>) -> ThreadGroup {
    let config = BackboneConfig {
        text_vocab: 20,
        mm_vocab: 20,
        image_vocab: 16,
        hidden: 24,
        intermediate: 30,
        layers: 3,
        adapter_layers: 1,
        head_layers: 1,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        sliding_window: None,
        max_positions: 64,
    };
    let group = GroupConfig {
        ranks: size,
        max_rows: LIMITS.max_rows,
        blocks: LIMITS.blocks,
        block_size: LIMITS.block_size,
        slots: LIMITS.max_sequences,
        suppressed: vec![],
        keep_logits: false,
    };
    let weights = Weights::random(11, "backbone");
    ThreadGroup::start_part(&[Arc::new(Cpu::new())], &config, weights, &group, part)
        .expect("started")
}

/// The steps of one request of `tokens` tokens; they do not depend on what is drawn.
fn steps(tokens: usize) -> Vec<Arc<Step>> {
    let mut scheduler = Scheduler::new(LIMITS);
    let request = Request {
        id: 1,
        priority: 0,
        mode: Mode::Image,
        prompt: (0..13).collect(),
        negative_prompt: None,
        sampling: SamplingParams::GREEDY,
        seed: 5,
        outputs: vec![OutputSpec {
            image_index: 0,
            forced: vec![],
        }],
        max_tokens: tokens,
        stop_ids: vec![],
        deadline: None,
        log_probs: false,
    };
    scheduler.submit(request).expect("accepted");
    let now = Instant::now();
    std::iter::from_fn(|| scheduler.plan(now).map(Arc::new)).collect()
}

fn run(ranks: &ThreadGroup, steps: &[Arc<Step>]) -> Vec<u32> {
    for step in steps {
        ranks.submit(step).expect("alive");
    }
    let drawn = |_| ranks.collect().expect("ran").drawn.into_iter();
    steps
        .iter()
        .flat_map(drawn)
        .map(|drawn| drawn.expect("finite").0)
        .collect()
}

/// Connections of the ranks `part` of an epoch in which all ranks are of this machine.
fn connections(epoch: u64, size: usize, abort: &Abort) -> Vec<Connection> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listeners: Vec<_> = (0..size).map(bind).collect();
    let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
    let addresses: Arc<[String]> = listeners.iter().map(address).collect();
    let connection = |(rank, listener)| Connection::Net {
        listener,
        config: NetConfig {
            epoch,
            secret: b"secret".as_slice().into(),
            rank,
            addresses: addresses.clone(),
            deadline: Duration::from_secs(20),
        },
        abort: abort.clone(),
    };
    listeners.into_iter().enumerate().map(connection).collect()
}

#[test]
fn steps_queued_ahead_give_the_same_tokens_in_parts_and_whole() {
    let steps = steps(9);
    let whole = ranks(1, 0..1);
    whole.reset_local().expect("connected");
    let expected = run(&whole, &steps);
    assert_eq!(expected.len(), 9);

    let (low, high) = (ranks(4, 0..3), ranks(4, 3..4));
    for epoch in 1..4 {
        let mut first = connections(epoch, 4, &Abort::default());
        let last = first.split_off(3);
        std::thread::scope(|scope| {
            let high = scope.spawn(|| {
                high.reset(last).expect("connected");
                run(&high, &steps)
            });
            low.reset(first).expect("connected");
            assert_eq!(run(&low, &steps), expected, "epoch {epoch}");
            assert_eq!(high.join().expect("no panic"), expected);
        });
    }
}

#[test]
fn nothing_runs_between_epochs_and_weights_survive_them() {
    let steps = steps(3);
    let ranks = ranks(2, 0..2);
    ranks.run(steps[0].clone()).expect_err("no epoch yet");
    ranks.warm_up().expect("alone");
    ranks.reset_local().expect("connected");
    let expected = run(&ranks, &steps);

    let abort = Abort::default();
    ranks.reset(connections(2, 2, &abort)).expect("connected");
    abort.abort();
    for step in &steps {
        ranks.submit(step).expect("alive");
    }
    for _ in &steps {
        ranks.collect().expect_err("aborted");
    }
    // Steps that nobody collects belong to their epoch.
    ranks.submit(&steps[0]).expect("alive");
    ranks.reset_local().expect("connected");
    assert_eq!(run(&ranks, &steps), expected);
}

#[test]
fn the_cause_is_told_rather_than_that_others_waited() {
    let waited = || Some(Err(Error::GroupLost("rank 0 waited in vain".into())));
    let full = || {
        Some(Err(Error::Capacity {
            what: "memory",
            limit: "1".into(),
            needed: "2".into(),
            retry_after: None,
        }))
    };
    let told = |results: Vec<Option<Result<StepOutput>>>| {
        agree(results.into_iter().enumerate())
            .expect_err("failed")
            .to_string()
    };
    assert!(told(vec![waited(), full(), waited()]).contains("memory is full"));
    assert!(told(vec![waited(), None]).contains("rank 1 has ended"));
    assert!(told(vec![Some(Ok(StepOutput::default())), waited()]).contains("in vain"));
}
