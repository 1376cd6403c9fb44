//! `xomni up` and `xomni generate --server` as a user runs them.

use std::{fs, net::TcpListener, path::Path, process::Command};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;
use xomni_tests::{
    http::Client,
    metrics::Metrics,
    process::{Process, binary, wait_for},
};

fn generate(folder: &Path, name: &str, more: &[&str]) -> Vec<u8> {
    let output = Command::new(binary("xomni"))
        .args([
            "generate",
            "a red fox",
            "--size",
            "48x32",
            "--seed",
            "7",
            "-o",
            name,
        ])
        .args(more)
        .current_dir(folder)
        .output()
        .expect("xomni runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::read(folder.join(name)).expect("picture")
}

fn status(server: &str, more: &[&str]) -> String {
    let output = Command::new(binary("xomni"))
        .args(["status", "--server", server])
        .args(more)
        .output()
        .expect("xomni runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The same picture over HTTP, from the model of this name.
fn over_http(address: &str, model: &str) -> Vec<u8> {
    let body = json!({"model": model, "prompt": "a red fox", "size": "48x32", "seed": 7});
    let client = Client::new(address.parse().expect("an address"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let models = runtime.block_on(client.get("/v1/models")).json();
    assert_eq!(models["data"][0]["id"], model, "{models}");
    let answer = runtime.block_on(client.post("/v1/images/generations", &body));
    assert_eq!(answer.status, 200, "{}", answer.json());
    let picture = &answer.json()["data"][0]["b64_json"];
    let picture = picture.as_str().expect("a picture");
    BASE64_STANDARD.decode(picture).expect("base64")
}

#[test]
fn a_cluster_comes_up_draws_and_ends_with_all_it_started() {
    let folder = tempfile::tempdir().expect("folder");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.expect("a free port").to_string();
    let arguments = ["up", "--tp", "2", "--decoders", "2", "--listen", &address];
    let mut up = Process::start("up", "xomni", &arguments, &[], folder.path());
    up.wait_for_line(&format!("ready: {address}"));

    let output = up.output();
    let metrics = output.lines().filter_map(|line| {
        let (name, url) = line.strip_prefix("  ")?.split_once(": ")?;
        Some((name.to_owned(), Metrics::read(url).expect("metrics")))
    });
    let metrics: Vec<_> = metrics.collect();
    let names: Vec<_> = metrics.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "etcd",
        "coordinator",
        "group 0 rank 0",
        "group 0 rank 1",
        "decoder 0",
        "decoder 1",
    ];
    assert_eq!(names, expected);
    for (name, metrics) in &metrics[2..4] {
        assert_eq!(metrics.get("xomni_backbone_ready"), 1.0, "{name}");
    }

    let drawn = generate(folder.path(), "server.png", &["--server", &address]);
    assert!(drawn == generate(folder.path(), "local.png", &[]));
    assert!(drawn == over_http(&address, "x-omni-nano"));

    let status = status(&address, &["--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let [group] = &status["groups"].as_array().expect("groups")[..] else {
        panic!("{status}")
    };
    let shown = ["state", "tp", "ranks_present"].map(|field| &group[field]);
    assert_eq!(shown, [&json!("ready"), &json!(2), &json!(2)], "{status}");
    assert_eq!(status["decoders"].as_array().map(Vec::len), Some(2));
    assert_eq!(status["coordinator"]["state"], "serving");
    let table = self::status(&address, &[]);
    let ready = table.lines().filter(|line| line.contains(" ready "));
    assert_eq!(
        ready.count(),
        5,
        "a group, its ranks and two decoders:\n{table}"
    );

    up.signal("INT");
    assert!(up.wait().success(), "{}", up.output());
    let again = TcpListener::bind(&address);
    assert!(again.is_ok(), "the coordinator is gone: {again:?}");
}

/// Processes that `parent` has started and that run.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<u32>().ok()
    });
    processes
        .filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent))
        .collect()
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the last parenthesis may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.to_owned();
    Some((state, fields.next()?.parse().ok()?))
}

#[test]
#[cfg(target_os = "linux")]
fn nothing_outlives_a_killed_parent() {
    let folder = tempfile::tempdir().expect("folder");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.expect("a free port").to_string();
    let arguments = ["up", "--listen", &address, "--model-name", "posters"];
    let mut up = Process::start("up", "xomni", &arguments, &[], folder.path());
    up.wait_for_line(&format!("ready: {address}"));
    over_http(&address, "posters");
    let started = children(up.id());
    assert_eq!(
        started.len(),
        4,
        "etcd, coordinator, rank, decoder: {started:?}"
    );
    up.kill();
    wait_for("the end of all children", || {
        // One that has ended may wait for whoever is its parent now.
        let ended = |pid: &u32| stat(*pid).is_none_or(|(state, _)| state == "Z");
        started.iter().all(ended).then_some(())
    });
}

#[test]
fn the_status_of_a_server_that_is_not_there_is_an_error() {
    let output = Command::new(binary("xomni"))
        .args(["status", "--server", "127.0.0.1:1"])
        .output()
        .expect("xomni runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
}

#[test]
fn what_a_server_refuses_ends_as_it_does_here() {
    let folder = tempfile::tempdir().expect("folder");
    let output = Command::new(binary("xomni"))
        .args(["generate", "a", "--server", "127.0.0.1:1"])
        .current_dir(folder.path())
        .output()
        .expect("xomni runs");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 0);
}
