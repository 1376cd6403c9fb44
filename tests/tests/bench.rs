//! The measuring commands as a user runs them: what they measure is right, and they say so.

use std::{
    fs,
    process::{Command, Output},
};

use serde_json::{Value, json};
use xomni_tests::{
    coordinator::{Cluster, ROOMY},
    process::binary,
};

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

/// Asks a server for a picture of each of two prompts, the second of which it refuses, as often.
async fn served(cluster: &Cluster, load: [&str; 2]) -> Value {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("prompts.jsonl");
    let prompts = ["a red fox", ""].map(|prompt| json!({ "prompt": prompt }).to_string());
    fs::write(&file, prompts.join("\n")).expect("written");
    let (server, file) = (cluster.address.to_string(), file.display().to_string());
    let arguments = [
        &["serve", "--server", &server, "--prompts", &file][..],
        &["--requests", "6", "--size", "64x32", "--n", "2"],
        &["--partial-images", "1", "--limit", "3600", "--json"],
        &load,
    ];
    let arguments: Vec<String> = arguments.concat().into_iter().map(Into::into).collect();
    let output = tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        bench(&arguments)
    });
    report(&output.await.expect("no panic"))
}

#[tokio::test]
async fn pictures_are_timed_and_errors_are_told_however_requests_arrive() {
    let cluster = Cluster::start(1, ROOMY).await;
    for load in [["--concurrency", "2"], ["--rate", "50"]] {
        let report = served(&cluster, load).await;
        let counts = ["requests", "succeeded"].map(|name| &report[name]);
        assert_eq!(counts, [&json!(6), &json!(3)], "{report}");
        let errors = report["errors"].as_object().expect("by kind");
        assert_eq!(errors.values().collect::<Vec<_>>(), [&json!(3)], "{report}");
        for (name, count) in [
            ("image_seconds", 6),
            ("queue_seconds", 3),
            ("first_token_seconds", 3),
        ] {
            let times = &report[name];
            assert_eq!(times["count"], count, "{name}: {report}");
            let of = |name: &str| times[name].as_f64().expect("a number");
            assert!(of("p50") <= of("p90") && of("p90") <= of("p99"));
        }
        let number = |name: &str| report[name].as_f64().expect("a number");
        let (tokens, pictures) = (number("tokens_per_second"), number("images_per_second"));
        // Of 4x2 tokens each, as many in a second as pictures.
        assert!((tokens - 8.0 * pictures).abs() < 1e-6 * tokens, "{report}");
        assert_eq!(report["goodput"]["share"], 0.5, "{report}");
    }
    cluster.idle().await;
}

#[test]
fn a_backbone_is_right_before_it_is_timed() {
    let folder = tempfile::tempdir().expect("folder");
    let (json, nano) = (folder.path().join("figures.json"), nano());
    let arguments = [
        "backbone",
        "--device",
        "cpu",
        "--shapes",
        &nano,
        "--rows",
        "1,8",
        "--context",
        "100",
        "--step-seconds",
        "0.2",
        "--prefill",
        "40",
        "--images",
        "24",
        "--concurrency",
        "1,5",
        "--prompt",
        "30",
        "--guidance-scale",
        "2",
        "--image-seconds",
        "60",
        "--json",
        json.to_str().expect("a path"),
    ];
    let output = bench(&arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("figures")).expect("JSON");
    let validation = &report["validation"];
    assert_eq!(validation["repeatable"], true, "{report}");
    assert_eq!(validation["invariant"], true, "{report}");
    assert_eq!(validation["error"], 0.0, "the CPU is what is compared with");
    let positive = |value: &Value| value.as_f64().is_some_and(|value| value > 0.0);
    for (steps, rows) in report["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .zip([1, 8])
    {
        assert_eq!(steps["rows"], rows, "{report}");
        assert!(positive(&steps["milliseconds"]) && positive(&steps["of_read_bandwidth"]));
    }
    assert_eq!(report["prefill"]["tokens"], 40, "{report}");
    for (images, count) in report["images"]
        .as_array()
        .expect("images")
        .iter()
        .zip([1, 5])
    {
        assert_eq!(images["finished"], count, "{report}");
        assert_eq!(images["rows"], 2 * count, "guided: {report}");
        assert_eq!(images["complete"], true, "{report}");
        assert!(positive(&images["images_per_second"]) && positive(&images["of_steps"]));
    }
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(
        table.contains("a row alone as in a batch: the same bits"),
        "{table}"
    );
}

fn nano() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../models/nano/x-omni").into()
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let nano = nano();
    let small = ["backbone", "--device", "cpu", "--shapes", &nano];
    let few_blocks = [
        "--parts",
        "steps",
        "--rows",
        "64",
        "--context",
        "100",
        "--kv-memory",
        "1",
    ];
    for (arguments, status, reason) in [
        (
            &["--weights", "checkpoint"][..],
            2,
            "--weights: must be random:SEED",
        ),
        (
            &["--step-seconds", "-1"],
            2,
            "--step-seconds: must be seconds, got -1",
        ),
        (
            &["--parts", "steps", "--context", "1000000"],
            2,
            "positions must be 1 to",
        ),
        (&few_blocks, 2, "rows: the K/V memory has"),
    ] {
        let output = bench(&[&small[..], arguments].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(reason), "{stderr}");
    }
    let output = bench(&["coordinator", "--seconds", "60", "--side", "16"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("--seconds: "), "{stderr}");
}
