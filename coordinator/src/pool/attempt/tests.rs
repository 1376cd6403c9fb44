use proptest::prelude::*;
use xomni_engine::{sampling::SamplingParams, schedule::OutputSpec};

use super::*;

const LIMIT: u32 = 4;

fn job(outputs: usize, max_tokens: usize) -> GenerateJob {
    let output = |image_index| OutputSpec {
        image_index,
        forced: vec![],
    };
    GenerateJob {
        request_id: "r".into(),
        attempt: 0,
        priority: 0,
        mode: Mode::Image,
        prompt: vec![1, 2],
        negative_prompt: None,
        sampling: SamplingParams::GREEDY,
        seed: 0,
        outputs: (0..outputs as u32).map(output).collect(),
        max_tokens,
        stop_ids: vec![],
        deadline: None,
        log_probs: true,
    }
}

/// The token that an image has at a position, whoever draws it.
fn token(image_index: u32, position: usize) -> u32 {
    image_index * 1000 + position as u32
}

fn frame(output: usize, image_index: u32, positions: std::ops::Range<usize>) -> TokenFrame {
    TokenFrame {
        output,
        first: positions.start as u32,
        tokens: positions.clone().map(|at| token(image_index, at)).collect(),
        log_probs: positions.map(|at| at as f32).collect(),
        finished: None,
    }
}

fn lost() -> Error {
    Error::GroupLost("test".into())
}

#[test]
fn an_attempt_asks_for_what_is_missing_under_the_jobs_own_numbers() {
    let mut attempts = Attempts::new(job(3, 4), LIMIT);
    attempts.next("f");
    assert_eq!(attempts.fingerprint(), None);
    attempts.on_frame(frame(0, 0, 0..2)).expect("continues");
    let whole = attempts.on_frame(frame(1, 1, 0..4)).expect("continues");
    let end = whole.and_then(|frame| frame.finished);
    assert_eq!(end, Some(FinishReason::Length));
    attempts.on_failure(lost()).expect("another attempt");

    assert_eq!(attempts.fingerprint(), Some("f"));
    let next = attempts.next("f");
    assert_eq!(next.attempt, 1);
    let asked: Vec<_> = next
        .outputs
        .iter()
        .map(|o| (o.image_index, o.forced.len()))
        .collect();
    assert_eq!(asked, [(0, 2), (2, 0)]);
    let frame = attempts.on_frame(frame(1, 2, 0..4)).expect("continues");
    assert_eq!(frame.map(|frame| frame.output), Some(2));
    assert!(!attempts.is_done());
}

#[test]
fn frames_that_do_not_continue_are_refused() {
    let differs = TokenFrame {
        tokens: vec![7, 7, 7],
        ..frame(0, 0, 0..3)
    };
    let early = TokenFrame {
        finished: Some(FinishReason::Length),
        ..frame(0, 0, 2..3)
    };
    let bare = TokenFrame {
        log_probs: vec![],
        ..frame(0, 0, 2..3)
    };
    for wrong in [
        frame(1, 0, 0..1),
        frame(0, 0, 3..4),
        frame(0, 0, 2..9),
        differs,
        early,
        bare,
    ] {
        let mut attempts = Attempts::new(job(1, 8), LIMIT);
        attempts.next("f");
        attempts.on_frame(frame(0, 0, 0..2)).expect("continues");
        let refused = attempts.on_frame(wrong.clone());
        assert!(
            matches!(refused, Err(Error::WorkerLost { .. })),
            "{wrong:?}"
        );
    }
}

#[test]
fn only_what_may_go_better_elsewhere_is_tried_again_and_not_for_ever() {
    let mut attempts = Attempts::new(job(1, 1), LIMIT);
    assert!(attempts.on_failure(Error::Cancelled).is_err());
    let mut attempts = Attempts::new(job(1, 1), LIMIT);
    for _ in 1..LIMIT {
        attempts.next("f");
        attempts.on_failure(lost()).expect("another attempt");
    }
    attempts.next("f");
    assert!(attempts.on_failure(lost()).is_err());
}

proptest! {
    /// A scripted worker sends any pieces of what it was asked for, repeats some, and fails at any
    /// moment. Invariants: `delivered once and in order`, `complete outputs are not asked for
    /// again`, `one end an output`, `attempts are bounded`, `done or failed`.
    #[test]
    fn tokens_arrive_once_and_in_order_whatever_fails(
        outputs in 1usize..4,
        max_tokens in 1usize..12,
        script in proptest::collection::vec((0usize..4, 1usize..5, 0usize..3, 0u8..6), 0..200),
    ) {
        let mut attempts = Attempts::new(job(outputs, max_tokens), LIMIT);
        let mut delivered: Vec<Vec<u32>> = vec![vec![]; outputs];
        let mut ended = vec![0; outputs];
        let mut failures = 0;
        let mut asked = attempts.next("f");
        for (output, length, again, fate) in script {
            if attempts.is_done() {
                break;
            }
            if fate == 0 {
                failures += 1;
                if attempts.on_failure(lost()).is_err() {
                    prop_assert_eq!(failures, LIMIT, "attempts are bounded");
                    return Ok(());
                }
                prop_assert!(failures < LIMIT, "attempts are bounded");
                asked = attempts.next("f");
                for spec in &asked.outputs {
                    let index = spec.image_index as usize;
                    prop_assert_eq!(ended[index], 0, "complete outputs are not asked for again");
                    prop_assert_eq!(&spec.forced, &delivered[index]);
                }
                continue;
            }
            let Some(spec) = asked.outputs.get(output) else { continue };
            let image = spec.image_index;
            let known = delivered[image as usize].len();
            let to = (known + length).min(max_tokens);
            let mut sent = frame(output, image, known.saturating_sub(again)..to);
            sent.finished = (to == max_tokens).then_some(FinishReason::Length);
            let Some(new) = attempts.on_frame(sent).expect("continues") else { continue };
            let tokens = &mut delivered[new.output];
            prop_assert_eq!(new.first as usize, tokens.len(), "delivered once and in order");
            prop_assert_eq!(new.log_probs.len(), new.tokens.len());
            tokens.extend(new.tokens);
            ended[new.output] += u32::from(new.finished.is_some());
        }
        for (image, tokens) in delivered.iter().enumerate() {
            let expected = (0..tokens.len()).map(|at| token(image as u32, at)).collect::<Vec<_>>();
            prop_assert_eq!(tokens, &expected, "delivered once and in order");
            prop_assert_eq!(ended[image], u32::from(tokens.len() == max_tokens), "one end an output");
        }
        let complete = delivered.iter().all(|tokens| tokens.len() == max_tokens);
        prop_assert_eq!(attempts.is_done(), complete, "done or failed");
    }
}
