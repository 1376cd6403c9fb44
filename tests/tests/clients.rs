//! The API as the clients of others see it: those of OpenAI for Python and Node, curl, a client of
//! gRPC that knows nothing but what reflection tells, and a reader of the description.
//! `deploy/dev/clients` installs them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use xomni_coordinator::front::access::{Access, Record};
use xomni_tests::{
    coordinator::{Cluster, ROOMY},
    golden::Fixture,
};

const PROMPT: &str = "a red fox";
const SIZE: &str = "96x64";
const SEED: &str = "7";
/// Tokens after which a held model waits.
const TOKENS: usize = 8;
/// Longest request of a server that is short of time.
const DEADLINE: Duration = Duration::from_millis(300);
/// Seconds after which a program would never end.
const PATIENCE: &str = "300";

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the workspace").to_owned()
}

fn script(name: &str) -> String {
    let path = root().join("tests/clients").join(name);
    path.display().to_string()
}

/// A program of the packages for Python.
fn python(name: &str) -> PathBuf {
    let path = root().join("target/clients/python/bin").join(name);
    assert!(path.is_file(), "run deploy/dev/clients");
    path
}

fn node() -> PathBuf {
    let packages = root().join("tests/clients/node/node_modules/openai");
    assert!(packages.is_dir(), "run deploy/dev/clients");
    "node".into()
}

fn url(cluster: &Cluster) -> String {
    format!("http://{}", cluster.address)
}

/// What a program writes.
async fn run(program: PathBuf, arguments: &[&str], variables: &[(&str, &str)]) -> Vec<u8> {
    let mut command = Command::new("timeout");
    command.arg(PATIENCE).arg(&program);
    command.args(arguments).envs(variables.iter().copied());
    command.current_dir(std::env::temp_dir());
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let output = tokio::task::spawn_blocking(move || command.output());
    let Output {
        status,
        stdout,
        stderr,
    } = output.await.expect("no panic").expect("it is installed");
    assert!(
        status.success(),
        "{program:?} {arguments:?}: {status}\n{}{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr)
    );
    stdout
}

/// Runs the tests of a client, and sees that nothing is left of what it gave up.
async fn test(program: PathBuf, arguments: &[&str]) {
    let free = Cluster::start(1, ROOMY).await;
    let held = Cluster::start(1, ROOMY).await;
    let short = Cluster::start_with(1, |setup| setup.timeout = DEADLINE).await;
    for cluster in [&held, &short] {
        cluster.workers[0].most.send_replace(TOKENS);
    }
    let (key, record) = Record::generate("once".into()).expect("random numbers");
    let record = Record {
        requests_per_minute: Some(1),
        ..record
    };
    let line = serde_json::to_string(&record).expect("json");
    let access = Access::read("test", &line).expect("keys");
    let keyed = Cluster::start_with(1, |setup| setup.access = access).await;
    let golden = Fixture::open().path(".").display().to_string();
    let variables = [
        ("XOMNI_FREE", &*url(&free)),
        ("XOMNI_HELD", &*url(&held)),
        ("XOMNI_SHORT", &*url(&short)),
        ("XOMNI_KEYED", &*url(&keyed)),
        ("XOMNI_KEY", &*key),
        ("XOMNI_GOLDEN", &*golden),
    ];
    run(program, arguments, &variables).await;
    assert!(held.jobs() >= 2, "both of the aborted streams had begun");
    for cluster in [free, held, short, keyed] {
        cluster.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_for_python() {
    let tests = script("python/test_openai.py");
    test(python("pytest"), &["-q", "-p", "no:cacheprovider", &tests]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_for_node() {
    test(node(), &["--test", &script("node/openai.test.mjs")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_gets_the_same_picture() {
    let cluster = Cluster::start(1, ROOMY).await;
    let (url, address) = (url(&cluster), cluster.address.to_string());

    let request = json!({"prompt": PROMPT, "size": SIZE, "seed": 7}).to_string();
    let path = format!("{url}/v1/images/generations");
    let arguments = [
        &["--silent", "--show-error", "--fail-with-body", &path][..],
        &["--header", "content-type: application/json"],
        &["--data", &request],
    ];
    let answer = run("curl".into(), &arguments.concat(), &[]).await;
    let answer: Value = serde_json::from_slice(&answer).expect("json");
    let picture = answer["data"][0]["b64_json"].as_str().expect("base64");
    let picture = BASE64_STANDARD.decode(picture).expect("base64");
    let shown = image::load_from_memory(&picture).expect("a picture");
    assert_eq!((shown.width(), shown.height()), (96, 64));

    let draw = script("python/draw.py");
    let drawn = run(python("python"), &[&draw, &url, PROMPT, SIZE, SEED], &[]).await;
    assert!(drawn == picture, "OpenAI's client for Python");

    let draw = script("node/draw.mjs");
    let drawn = run(node(), &[&draw, &url, PROMPT, SIZE, SEED], &[]).await;
    assert!(drawn == picture, "OpenAI's client for Node");

    let reflect = script("python/reflect.py");
    let arguments = [&*reflect, &address, PROMPT, SIZE, SEED];
    let drawn = run(python("python"), &arguments, &[]).await;
    assert!(drawn == picture, "gRPC by reflection");

    assert_eq!(cluster.jobs(), 4, "each was drawn");
    cluster.idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_is_true() {
    let cluster = Cluster::start(1, ROOMY).await;
    let (document, settings) = (
        format!("{}/openapi.json", url(&cluster)),
        script("python/schemathesis.toml"),
    );
    let arguments = ["--config-file", &settings, "run", &document];
    let hooks = script("python/bounds.py");
    let variables = [("SCHEMATHESIS_HOOKS", &*hooks)];
    run(python("schemathesis"), &arguments, &variables).await;
    assert!(cluster.jobs() > 0, "some of the requests are drawn");
    cluster.idle().await;
}
