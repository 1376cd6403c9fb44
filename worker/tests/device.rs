//! A worker that is told to run on a GPU where there is none.

use std::process::{Command, Output};

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/nano/x-omni");

/// A backbone on `device` that sees no GPU, also where there is one.
fn backbone(device: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xomni-worker"))
        .args(["backbone", "--model", NANO, "--device", device])
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .expect("the worker runs")
}

#[test]
fn without_a_gpu_it_says_so_and_ends() {
    let output = backbone("cuda");
    let text = String::from_utf8_lossy(&output.stderr);
    let reasons: &[&str] = if cfg!(feature = "cuda") {
        // Without and with a driver.
        &["no NVIDIA driver", "no GPU"]
    } else {
        &["built without it"]
    };
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.lines().last().unwrap_or_default();
    assert!(line.starts_with("error: --device cuda: "), "{text}");
    assert!(reasons.iter().any(|reason| line.contains(reason)), "{text}");
}

#[test]
fn a_device_that_does_not_exist_is_refused_with_those_that_do() {
    let output = backbone("tpu");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("cpu, cuda"), "{text}");
}
