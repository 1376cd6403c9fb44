//! Round trips of the conversions, and messages that anyone may send.

use proptest::{collection::vec, prelude::*};
use tokio::sync::watch;
use tonic::{Code, Status};
use xomni_cluster::record::WorkerState;
use xomni_engine::{
    Error,
    decode::{MAX_STEPS, Progress},
    sampling::SamplingParams,
    schedule::{FinishReason, Mode, OutputSpec},
    text::Grid,
};
use xomni_proto::worker as wire;

use super::{backbone::Target, *};
use crate::api::{DecodeJob, GenerateJob, TokenFrame};

const VOCABULARY: u32 = 500;

fn identity() -> (watch::Sender<Standing>, Identity) {
    let (sender, standing) = watch::channel(Standing::ready(7));
    let identity = Identity {
        model: "m".into(),
        fingerprint: "f".into(),
        weights_version: "w".into(),
        vocabulary: VOCABULARY,
        standing,
    };
    (sender, identity)
}

fn target() -> Target {
    Target {
        model: "m".into(),
        fingerprint: "f".into(),
        weights_version: "w".into(),
        epoch: 7,
    }
}

fn ids(most: usize) -> impl Strategy<Value = Vec<u32>> {
    vec(0..VOCABULARY, 0..=most)
}

fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Image), Just(Mode::Text)]
}

fn generate_jobs() -> impl Strategy<Value = GenerateJob> {
    let sampling = (0f32..=100.0, any::<u32>(), 0.001f32..=1.0, 0f32..=1.0);
    let prompts = (vec(0..VOCABULARY, 1..9), vec(0..VOCABULARY, 1..9));
    let outputs = vec((any::<u32>(), ids(5)), 1..4);
    let guidance = prop_oneof![Just(1f32), 0f32..=100.0];
    let rest = (
        any::<u32>(),
        any::<i32>(),
        modes(),
        any::<u64>(),
        any::<bool>(),
    );
    let generated = (
        sampling,
        guidance,
        prompts,
        outputs,
        ids(4),
        rest,
        5usize..100,
    );
    generated.prop_map(
        |(sampling, guidance_scale, prompts, outputs, stop_ids, rest, max_tokens)| {
            let (temperature, top_k, top_p, min_p) = sampling;
            let sampling = SamplingParams {
                temperature,
                top_k: top_k as usize,
                top_p,
                min_p,
                guidance_scale,
            };
            let (attempt, priority, mode, seed, log_probs) = rest;
            let output = |(image_index, forced)| OutputSpec {
                image_index,
                forced,
            };
            GenerateJob {
                request_id: "r".into(),
                attempt,
                priority,
                mode,
                prompt: prompts.0,
                negative_prompt: sampling.guided().then_some(prompts.1),
                sampling,
                seed,
                outputs: outputs.into_iter().map(output).collect(),
                max_tokens,
                stop_ids,
                deadline: None,
                log_probs,
            }
        },
    )
}

/// Requests of any content, most fields near what is allowed.
fn requests() -> impl Strategy<Value = wire::GenerateRequest> {
    let name = || prop_oneof![Just("m".to_owned()), Just(String::new()), ".{0,9}"];
    let names = (name(), name(), name(), name(), name());
    let numbers = (0u32..4, 0u64..9, -1i32..4, 0u32..9);
    let token = || prop_oneof![0..VOCABULARY, any::<u32>()];
    let tokens = || vec(token(), 0..4);
    let outputs = vec((any::<u32>(), tokens()), 0..70);
    let value = || prop_oneof![Just(1f32), Just(0f32), any::<f32>()];
    let sampling = proptest::option::of((value(), any::<u32>(), value(), value(), value()));
    (names, numbers, tokens(), tokens(), outputs, sampling).prop_map(
        |(names, numbers, prompt, negative_prompt, outputs, sampling)| wire::GenerateRequest {
            protocol_version: numbers.0,
            request_id: names.0,
            model: names.1,
            adapter: names.2,
            weights_version: names.3,
            fingerprint: names.4,
            epoch: numbers.1,
            mode: numbers.2,
            max_tokens: numbers.3,
            prompt,
            negative_prompt,
            sampling: sampling.map(|(temperature, top_k, top_p, min_p, guidance_scale)| {
                wire::Sampling {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    guidance_scale,
                }
            }),
            outputs: outputs
                .into_iter()
                .map(|(image_index, forced)| wire::Output {
                    image_index,
                    forced,
                })
                .collect(),
            ..Default::default()
        },
    )
}

fn decode_jobs() -> impl Strategy<Value = DecodeJob> {
    let steps = proptest::option::of(1..=MAX_STEPS);
    let grid = (1..=decoder::MAX_SIDE, 1..=decoder::MAX_SIDE);
    (
        any::<u32>(),
        ".{0,40}",
        grid,
        any::<u64>(),
        any::<u32>(),
        steps,
    )
        .prop_map(
            |(attempt, prompt, (height, width), seed, image_index, steps)| DecodeJob {
                request_id: "r".into(),
                attempt,
                prompt,
                grid: Grid::new(height, width),
                seed,
                image_index,
                steps,
            },
        )
}

fn token_frames() -> impl Strategy<Value = TokenFrame> {
    let finished = prop_oneof![
        Just(None),
        Just(Some(FinishReason::Length)),
        Just(Some(FinishReason::Stop))
    ];
    let tokens = vec((any::<u32>(), -99f32..=0.0), 0..9);
    (0usize..1000, any::<u32>(), tokens, any::<bool>(), finished).prop_map(
        |(output, first, tokens, with_log_probs, finished)| {
            let (tokens, log_probs): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
            TokenFrame {
                output,
                first,
                tokens,
                log_probs: if with_log_probs { log_probs } else { vec![] },
                finished,
            }
        },
    )
}

fn progresses() -> impl Strategy<Value = Progress> {
    let denoise = (1usize..=MAX_STEPS).prop_flat_map(|of| (0..of, Just(of)));
    prop_oneof![
        Just(Progress::Encode),
        denoise.prop_map(|(step, of)| Progress::Denoise { step, of }),
        Just(Progress::Vae)
    ]
}

proptest! {
    #[test]
    fn generate_jobs_survive_the_wire(job in generate_jobs()) {
        let (_standing, identity) = identity();
        let request = backbone::request(job.clone(), &target());
        prop_assert_eq!(backbone::job(request, &identity, None).expect("valid"), job);
    }

    #[test]
    fn frames_survive_the_wire(frame in token_frames(), epoch: u64) {
        let sent = backbone::wire_frame(frame.clone(), epoch);
        prop_assert_eq!(sent.epoch, epoch);
        prop_assert_eq!(backbone::frame(sent).expect("valid"), frame);
    }

    #[test]
    fn decode_jobs_survive_the_wire(job in decode_jobs()) {
        let (_standing, identity) = identity();
        let sent = decoder::wire_job(job.clone(), &target());
        prop_assert_eq!(decoder::job(sent, &identity).expect("valid"), job);
    }

    #[test]
    fn progress_survives_the_wire(progress in progresses()) {
        let sent = decoder::wire_progress(progress);
        prop_assert_eq!(decoder::progress(sent).expect("valid"), progress);
    }

    /// Whatever is sent is refused with a reason or is a job that a scheduler may see.
    #[test]
    fn any_request_is_refused_or_sound(request in requests()) {
        let (_standing, identity) = identity();
        match backbone::job(request, &identity, None) {
            Ok(job) => {
                prop_assert!(job.sampling.validate().is_ok());
                prop_assert_eq!(job.sampling.guided(), job.negative_prompt.is_some());
                let forced = job.outputs.iter().flat_map(|output| &output.forced);
                let tokens = forced.chain(&job.prompt).chain(job.negative_prompt.iter().flatten());
                prop_assert!(tokens.into_iter().all(|id| *id < VOCABULARY));
                prop_assert!(!job.prompt.is_empty() && job.max_tokens > 0);
                prop_assert!((1..=backbone::MAX_OUTPUTS).contains(&job.outputs.len()));
            }
            Err(refusal) => {
                let text = refusal.to_string();
                prop_assert!(!text.is_empty() && text.len() < 1000, "{}", text);
            }
        }
    }

    #[test]
    fn any_frame_is_refused_or_sound(
        finished: i32,
        tokens in vec(any::<u32>(), 0..4),
        log_probs in vec(any::<f32>(), 0..4),
    ) {
        let sent = wire::TokenFrame { finished, tokens, log_probs, ..Default::default() };
        if let Ok(frame) = backbone::frame(sent) {
            let (tokens, log_probs) = (frame.tokens.len(), frame.log_probs.len());
            prop_assert!(log_probs == 0 || log_probs == tokens);
        }
    }

    #[test]
    fn any_decode_message_is_refused_or_sound(
        job in (any::<u32>(), any::<u32>(), any::<u32>()),
        progress in (any::<i32>(), any::<u32>(), any::<u32>()),
        codes in vec(any::<u32>(), 0..9),
    ) {
        let (_standing, identity) = identity();
        let (height, width, steps) = job;
        let job = wire::DecodeJob {
            protocol_version: 1, model: "m".into(), request_id: "r".into(),
            height: height % 300, width, steps, ..Default::default()
        };
        if let Ok(job) = decoder::job(job, &identity) {
            prop_assert!(job.grid.tokens() <= (decoder::MAX_SIDE * decoder::MAX_SIDE) as usize);
        }
        let (part, step, steps) = progress;
        let progress = wire::DecodeProgress { part, step, steps };
        if let Ok(Progress::Denoise { step, of }) = decoder::progress(progress) {
            prop_assert!(step < of);
        }
        let picture = wire::EncodedPicture { height, width, codes };
        if let Ok((grid, codes)) = decoder::picture(picture) {
            prop_assert_eq!(grid.tokens(), codes.len());
        }
    }

    /// What another process says of an error neither panics nor floods a log.
    #[test]
    fn any_status_is_an_error(code in -1i32..20, message: String, what in ".{0,400}") {
        let mut status = Status::new(Code::from_i32(code), message);
        let value = tonic::metadata::MetadataValue::from_bytes(what.as_bytes());
        status.metadata_mut().insert_bin("xomni-limit-bin", value);
        prop_assert!(status::error(&status).to_string().len() < 5000);
    }
}

#[test]
fn errors_survive_the_wire() {
    let errors = [
        Error::bad_input("prompt", "must be at most 8 tokens", "好".repeat(100)),
        Error::Capacity {
            what: "queue",
            limit: "8 requests".into(),
            needed: "40 rows are ahead".into(),
            retry_after: None,
        },
        Error::Cancelled,
        Error::DeadlineExceeded,
    ];
    for error in errors {
        let back = status::error(&status::failed(&error));
        assert_eq!(back.to_string(), error.to_string());
        assert_eq!(back.retryable(), error.retryable());
    }
    let lost = [
        Error::GroupLost("rank 3 at 10.0.0.7 has ended".into()),
        Error::worker_lost("decoder", "panicked: secret"),
    ];
    for error in lost {
        let status = status::failed(&error);
        assert!(status::error(&status).retryable());
        assert_eq!(status.message(), "the worker was lost");
    }
    let unsupported = Error::Unsupported {
        what: "text".into(),
        reason: "no head".into(),
    };
    assert!(!status::error(&status::failed(&unsupported)).retryable());
}

#[test]
fn a_worker_answers_only_for_itself() {
    let (standing, identity) = identity();
    let job = DecodeJob {
        request_id: "r".into(),
        attempt: 0,
        prompt: String::new(),
        grid: Grid::new(1, 1),
        seed: 0,
        image_index: 0,
        steps: None,
    };
    let asked = |change: &dyn Fn(&mut wire::GenerateRequest)| {
        let outputs = vec![OutputSpec {
            image_index: 0,
            forced: vec![],
        }];
        let job = GenerateJob {
            request_id: "r".into(),
            attempt: 0,
            priority: 0,
            mode: Mode::Text,
            prompt: vec![1],
            negative_prompt: None,
            sampling: SamplingParams::GREEDY,
            seed: 0,
            outputs,
            max_tokens: 1,
            stop_ids: vec![],
            deadline: None,
            log_probs: false,
        };
        let mut request = backbone::request(job, &target());
        change(&mut request);
        backbone::job(request, &identity, None).map(|_| ())
    };
    type Change = fn(&mut wire::GenerateRequest);
    let accepted: [Change; 5] = [
        |_| {},
        |request| request.protocol_version += 1,
        |request| request.fingerprint.clear(),
        |request| request.weights_version.clear(),
        |request| request.epoch = 0,
    ];
    for change in accepted {
        asked(&change).expect("accepted");
    }
    let mismatches: [(Change, &str); 6] = [
        (|request| request.protocol_version = 0, "protocol version"),
        (|request| request.protocol_version += 2, "protocol version"),
        (|request| request.model = "other".into(), "model"),
        (
            |request| request.fingerprint = "other".into(),
            "fingerprint",
        ),
        (
            |request| request.weights_version = "other".into(),
            "weights version",
        ),
        (|request| request.epoch = 6, "epoch"),
    ];
    for (change, what) in mismatches {
        let refusal = asked(&change).expect_err(what);
        assert!(refusal.to_string().starts_with(what), "{refusal}");
        let status = status::refused(refusal, std::time::Duration::ZERO);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status::error(&status).retryable());
    }
    for state in [WorkerState::Forming, WorkerState::Draining] {
        standing.send_modify(|standing| standing.state = state);
        let sent = decoder::wire_job(job.clone(), &target());
        let refusal = decoder::job(sent, &identity).expect_err("not ready");
        assert!(matches!(refusal, Refusal::Unavailable(_)), "{refusal}");
    }
}

#[test]
fn a_full_worker_says_when_to_come_back() {
    let mut standing = Standing::ready(1);
    let wait = |standing: &Standing| standing.retry_after().as_millis();
    assert_eq!(wait(&standing), 60_000, "not known");
    standing.load.backlog = 300;
    standing.load.rate = 100.0;
    assert_eq!(wait(&standing), 3000);
    standing.load.rate = 1e9;
    assert_eq!(wait(&standing), 100);
    standing.load.rate = -1.0;
    assert_eq!(wait(&standing), 60_000);
    let full = |retry_after| Error::Capacity {
        what: "queue",
        limit: String::new(),
        needed: String::new(),
        retry_after,
    };
    let seconds = std::time::Duration::from_secs;
    let status = status::refused(full(None).into(), seconds(3));
    let told = status.metadata().get(status::RETRY_AFTER).expect("told");
    assert_eq!(told, "3000");
    let Error::Capacity { retry_after, .. } = status::error(&status) else {
        panic!("{status:?}");
    };
    assert_eq!(retry_after, Some(seconds(3)), "its client knows");
    let passed_on = status::refused(full(retry_after).into(), seconds(9));
    let told = passed_on.metadata().get(status::RETRY_AFTER);
    assert_eq!(told.expect("told"), "3000", "and tells who asked");
}
