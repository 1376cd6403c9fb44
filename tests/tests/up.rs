//! `xomni up` and `xomni generate --server` as a user runs them.

use std::{fs, net::TcpListener, path::Path, process::Command};

use xomni_tests::process::{Process, binary};

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

#[test]
fn a_cluster_comes_up_draws_and_ends_with_all_it_started() {
    let folder = tempfile::tempdir().expect("folder");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.expect("a free port").to_string();
    let arguments = ["up", "--tp", "2", "--decoders", "2", "--listen", &address];
    let mut up = Process::start("up", "xomni", &arguments, &[], folder.path());
    up.wait_for_line(&format!("ready: {address}"));

    let drawn = generate(folder.path(), "server.png", &["--server", &address]);
    assert!(drawn == generate(folder.path(), "local.png", &[]));

    up.signal("INT");
    assert!(up.wait().success(), "{}", up.output());
    let again = TcpListener::bind(&address);
    assert!(again.is_ok(), "the coordinator is gone: {again:?}");
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
