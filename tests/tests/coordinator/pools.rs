//! Jobs that move from a failing worker to another give what one process gives.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use xomni_coordinator::{
    metrics::Metrics,
    pool::{ATTEMPTS, BackbonePool, DecoderPool, Pool},
    routing::{Router, Stage},
};
use xomni_engine::Error;
use xomni_tests::tiny::{Tiny, draw, record};
use xomni_worker::api::Backbone;

use crate::model::{
    Failure::{self, EndsAfter, FailsAfter, HangsAfter, IsFull, Refuses},
    Flaky,
};

fn router() -> Router {
    let router = Router::new(Duration::from_millis(1));
    let workers = [("a", Some(1)), ("b", Some(1)), ("c", None), ("d", None)];
    router.update(&workers.map(|(id, epoch)| record(id, "", epoch)));
    router
}

fn pool(flaky: &Flaky, router: &Router, metrics: &Metrics) -> Pool<Flaky> {
    Pool {
        model: "tiny".into(),
        router: router.clone(),
        connect: flaky.clone(),
        attempts: ATTEMPTS,
        metrics: metrics.clone(),
    }
}

/// Failures of backbones and of decoders, drawn from a seed.
fn scripts(seed: u64) -> [Vec<Failure>; 2] {
    let mut state = seed;
    let mut number = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    [12, 4].map(|events| {
        let count = number(u64::from(ATTEMPTS));
        let failure = |_| match number(4) {
            0 => Refuses,
            1 => EndsAfter(number(events) as usize),
            _ => FailsAfter(number(events) as usize),
        };
        (0..count).map(failure).collect()
    })
}

#[tokio::test]
async fn pictures_are_the_same_whatever_fails_when() {
    let model = Tiny::open();
    let job = model.job("a red fox", "96x64", 2);
    let expected = model.draw(job.clone()).await;
    let codes = |images: &[xomni_coordinator::pipeline::Image]| -> Vec<_> {
        let pair =
            |image: &xomni_coordinator::pipeline::Image| (image.codes.clone(), image.png.clone());
        images.iter().map(pair).collect()
    };
    for seed in 0..12 {
        let (router, metrics) = (router(), Metrics::default());
        let [backbones, decoders] = scripts(seed);
        let retries = backbones.len() as u64;
        println!("seed {seed}: {backbones:?} {decoders:?}");
        let backbone = Flaky::new(&model, backbones);
        let decoder = Flaky::new(&model, decoders);
        let drawn = draw(
            BackbonePool::new(pool(&backbone, &router, &metrics)),
            DecoderPool::new(pool(&decoder, &router, &metrics), 3),
            &model,
            job.clone(),
        );
        assert_eq!(codes(&drawn.await), codes(&expected), "seed {seed}");
        let counted = metrics.retries(Stage::Backbone).get();
        assert!(counted <= retries, "seed {seed}: {counted} of {retries}");
    }
}

#[tokio::test]
async fn a_silent_group_is_left_when_it_has_another_epoch() {
    let model = Tiny::open();
    let job = model.job("a red fox", "64x64", 1);
    let expected = model.draw(job.clone()).await;
    let (router, metrics) = (router(), Metrics::default());
    let backbone = Flaky::new(&model, [HangsAfter(1)]);
    let decoder = Flaky::new(&model, []);
    let drawn = draw(
        BackbonePool::new(pool(&backbone, &router, &metrics)),
        DecoderPool::new(pool(&decoder, &router, &metrics), 3),
        &model,
        job,
    );
    let reform = async {
        while backbone.jobs.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let workers = [("a", Some(2)), ("b", Some(2)), ("c", None)];
        router.update(&workers.map(|(id, epoch)| record(id, "", epoch)));
    };
    let (drawn, ()) = tokio::join!(drawn, reform);
    assert_eq!(drawn[0].png, expected[0].png);
    assert_eq!(metrics.retries(Stage::Backbone).get(), 1);
}

#[tokio::test]
async fn a_job_waits_for_a_worker_until_its_deadline() {
    let model = Tiny::open();
    let router = Router::new(Duration::ZERO);
    let metrics = Metrics::default();
    let backbone = BackbonePool::new(pool(&Flaky::new(&model, []), &router, &metrics));
    let mut job = generate_job(&model);
    job.deadline = Some(Instant::now() + Duration::from_millis(20));
    let late = backbone.generate(job.clone()).await;
    assert!(matches!(late, Err(Error::DeadlineExceeded)), "{late:?}");

    job.deadline = None;
    let (taken, ()) = tokio::join!(backbone.generate(job), async {
        router.update(&[record("a", "", Some(1))]);
    });
    assert!(taken.is_ok(), "{taken:?}");
}

#[tokio::test]
async fn full_workers_refuse_a_new_job_but_not_one_that_has_begun() {
    let model = Tiny::open();
    let (router, metrics) = (router(), Metrics::default());
    let full = [IsFull, IsFull];
    let backbone = BackbonePool::new(pool(&Flaky::new(&model, full), &router, &metrics));
    let refused = backbone.generate(generate_job(&model)).await;
    assert!(
        matches!(refused, Err(Error::Capacity { .. })),
        "{refused:?}"
    );

    let script = [FailsAfter(1), IsFull, IsFull, IsFull];
    let backbone = BackbonePool::new(pool(&Flaky::new(&model, script), &router, &metrics));
    let job = generate_job(&model);
    let total = job.max_tokens;
    let mut stream = backbone.generate(job).await.expect("taken");
    let mut tokens = 0;
    while let Some(frame) = stream.next().await.expect("drawn") {
        tokens += frame.tokens.len();
    }
    assert_eq!(tokens, total);
}

#[tokio::test]
async fn attempts_are_bounded() {
    let model = Tiny::open();
    let (router, metrics) = (router(), Metrics::default());
    let flaky = Flaky::new(&model, [Refuses; 100]);
    let backbone = BackbonePool::new(pool(&flaky, &router, &metrics));
    let failed = backbone.generate(generate_job(&model)).await;
    assert!(
        matches!(failed, Err(Error::WorkerLost { .. })),
        "{failed:?}"
    );
    assert_eq!(flaky.jobs.load(Ordering::Relaxed), ATTEMPTS as usize);
}

fn generate_job(model: &Tiny) -> xomni_worker::api::GenerateJob {
    let job = model.job("a red fox", "64x64", 1);
    let tokenizer = &model.0.tokenizer;
    xomni_worker::api::GenerateJob {
        request_id: "fox".into(),
        attempt: 0,
        priority: 0,
        mode: xomni_engine::schedule::Mode::Image,
        prompt: tokenizer
            .image_prompt("a red fox", job.grid)
            .expect("prompt"),
        negative_prompt: None,
        sampling: job.sampling,
        seed: 7,
        outputs: vec![xomni_engine::schedule::OutputSpec {
            image_index: 0,
            forced: vec![],
        }],
        max_tokens: job.grid.tokens(),
        stop_ids: vec![],
        deadline: None,
        log_probs: false,
    }
}
