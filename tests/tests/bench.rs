//! The measuring commands as a user runs them: what they measure is right, and they say so.

use std::process::{Command, Output};

use serde_json::Value;
use xomni_tests::process::binary;

fn bench(arguments: &[&str]) -> Output {
    let output = Command::new(binary("xomni"))
        .arg("bench")
        .args(arguments)
        .output();
    output.expect("xomni runs")
}

fn report(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn frames_are_timed_through_a_coordinator() {
    let arguments = [
        "coordinator",
        "--streams",
        "40",
        "--seconds",
        "2",
        "--side",
        "16",
        "--json",
    ];
    let report = report(&bench(&arguments));
    assert_eq!(report["streams"], 40);
    for way in ["latency_ms", "without_coordinator_ms"] {
        let latency = &report[way];
        assert_eq!(latency["count"], 40 * 40, "{report}");
        let of = |name: &str| latency[name].as_f64().expect("a number");
        assert!(0.0 < of("p50") && of("p50") <= of("p99") && of("p99") <= of("max"));
    }
    // 256 pixels of noise a picture.
    assert!(report["picture_bytes"].as_u64().expect("a number") > 40 * 200);
    assert!(
        report["coordinator"]["running_mib"]
            .as_f64()
            .expect("a number")
            > 1.0
    );
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let output = bench(&["coordinator", "--seconds", "60", "--side", "16"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("--seconds: "), "{stderr}");
}
