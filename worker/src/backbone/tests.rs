use std::collections::VecDeque;

use xomni_engine::{
    sampling::{Drawn, SamplingParams},
    schedule::{Mode, OutputSpec},
};

use super::*;

/// Ranks that draw the token 7, and fail at a step.
#[derive(Default)]
struct Fake {
    fails_at: Option<u64>,
    in_flight: VecDeque<Arc<Step>>,
    most: Arc<Mutex<usize>>,
    run: Arc<Mutex<usize>>,
}

impl StepRunner for Fake {
    fn submit(&mut self, step: &Arc<Step>) -> Result<()> {
        self.in_flight.push_back(step.clone());
        let mut most = self.most.lock().expect("no panic");
        *most = self.in_flight.len().max(*most);
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput> {
        std::thread::sleep(Duration::from_millis(1));
        *self.run.lock().expect("no panic") += 1;
        let step = self.in_flight.pop_front().expect("submitted");
        if self.fails_at == Some(step.id) {
            return Err(Error::GroupLost("as told".into()));
        }
        let drawn = Drawn {
            index: 7,
            log_prob: Some(-0.5),
        };
        Ok(StepOutput {
            step: step.id,
            drawn: vec![Some((7, drawn)); step.samples.len()],
            logits: vec![],
        })
    }
}

fn start(ranks: Fake) -> LocalBackbone {
    let config = SchedulerConfig {
        max_rows: 8,
        max_sequences: 4,
        max_queue: 4,
        blocks: 1024,
        block_size: 4,
        max_positions: 2000,
        vocabulary: 1000,
    };
    LocalBackbone::start(config, ranks).expect("started")
}

fn job(tokens: usize) -> GenerateJob {
    GenerateJob {
        request_id: "test".into(),
        attempt: 0,
        priority: 0,
        mode: Mode::Image,
        prompt: vec![1, 2, 3],
        negative_prompt: None,
        sampling: SamplingParams::GREEDY,
        seed: 0,
        outputs: vec![OutputSpec {
            image_index: 0,
            forced: vec![],
        }],
        max_tokens: tokens,
        stop_ids: vec![],
        deadline: None,
        log_probs: false,
    }
}

/// Tokens until the end of a stream, and its error.
async fn drain(mut stream: JobStream<TokenFrame>) -> (usize, Option<Error>) {
    let mut tokens = 0;
    loop {
        match stream.next().await {
            Ok(Some(frame)) => tokens += frame.tokens.len(),
            Ok(None) => return (tokens, None),
            Err(error) => return (tokens, Some(error)),
        }
    }
}

#[tokio::test]
async fn steps_are_planned_ahead() {
    let ranks = Fake::default();
    let most = ranks.most.clone();
    let backbone = start(ranks);
    let stream = backbone.generate(job(50)).await.expect("accepted");
    let (tokens, error) = drain(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(tokens, 50);
    assert_eq!(*most.lock().expect("no panic"), STEPS_AHEAD);
}

#[tokio::test]
async fn a_lost_group_reaches_even_those_who_read_nothing() {
    let backbone = start(Fake {
        fails_at: Some(500),
        ..Fake::default()
    });
    let stream = backbone.generate(job(1000)).await.expect("accepted");
    let lost =
        |result: Result<_>| matches!(result, Err(Error::GroupLost(_) | Error::WorkerLost { .. }));
    while !lost(backbone.generate(job(1)).await) {
        tokio::task::yield_now().await;
    }
    let (tokens, error) = drain(stream).await;
    assert!(matches!(error, Some(Error::GroupLost(_))), "{error:?}");
    assert!(tokens < 500);
}

#[tokio::test]
async fn work_ends_with_its_backbone_and_is_counted_until_then() {
    let backbone = start(Fake::default());
    let handle = backbone.handle();
    let stream = handle.generate(job(1900)).await.expect("accepted");
    let held = |load: Load| load.running == 1 && load.kv_blocks_free < load.kv_blocks;
    while !held(handle.load()) {
        tokio::task::yield_now().await;
    }
    drop(backbone);
    let (_, error) = drain(stream).await;
    assert!(matches!(error, Some(Error::GroupLost(_))), "{error:?}");
    let refused = handle.generate(job(1)).await;
    assert!(
        matches!(refused, Err(Error::WorkerLost { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_dropped_stream_cancels_its_job_wherever_the_step_is() {
    let ranks = Fake::default();
    let run = ranks.run.clone();
    let backbone = start(ranks);
    for _ in 0..20 {
        let mut stream = backbone.generate(job(1900)).await.expect("accepted");
        stream.next().await.expect("a frame");
        drop(stream);
        let free = |load: Load| load.running == 0 && load.kv_blocks_free == load.kv_blocks;
        while !free(backbone.handle().load()) {
            tokio::task::yield_now().await;
        }
    }
    assert!(
        *run.lock().expect("no panic") < 1900,
        "no job ran to its end"
    );
}
