//! Case 08: the flow-matching schedule.

use serde::Deserialize;
use xomni_engine::{
    checkpoint::flux::FlowConfig,
    model::flow::{Schedule, mu},
};
use xomni_tests::golden::Fixture;

const CASE: &str = "08_scheduler";

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    image_seq_len: usize,
    num_inference_steps: usize,
    mu: f64,
    sigmas: String,
    timesteps: String,
}

#[test]
fn golden_08_schedule() {
    let fixture = Fixture::open();
    let tensors = fixture.tensors(CASE);
    let config = FlowConfig::open(&fixture.flux().join("scheduler")).unwrap();
    for case in fixture.json::<Golden>(CASE).cases {
        let what = format!(
            "{} tokens, {} steps",
            case.image_seq_len, case.num_inference_steps
        );
        let exponent = mu(&config, case.image_seq_len);
        assert!((exponent - case.mu).abs() <= 1e-12, "{what}: mu {exponent}");
        let schedule = Schedule::new(&config, case.image_seq_len, case.num_inference_steps);
        relative(&what, &schedule.sigmas, &tensors.f32(&case.sigmas));
        relative(&what, &schedule.timesteps, &tensors.f32(&case.timesteps));
    }
}

fn relative(what: &str, actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (actual, expected) in actual.iter().zip(expected) {
        assert!(
            (actual - expected).abs() <= 1e-6 * expected.abs(),
            "{what}: {actual} {expected}"
        );
    }
}
