//! Who may call, over HTTP and over gRPC, and how much.

use std::{fs, process::Command};

use serde_json::json;
use tonic::{Code, Request};
use xomni_coordinator::front::access::{Access, Record};
use xomni_proto::images::{GenerateImagesRequest, images_client::ImagesClient};
use xomni_tests::{
    coordinator::Cluster,
    golden::Fixture,
    http::Client,
    process::{Process, binary},
};

use crate::images::{PATH, body};

/// A coordinator that knows some keys, and the secrets of these.
async fn cluster(records: Vec<(String, Record)>) -> (Cluster, Vec<String>) {
    let (secrets, records): (Vec<_>, Vec<_>) = records.into_iter().unzip();
    let lines = records
        .iter()
        .map(|record| serde_json::to_string(record).expect("json"));
    let text = lines.collect::<Vec<_>>().join("\n");
    let access = Access::read("test", &text).expect("keys");
    let cluster = Cluster::start_with(1, |setup| setup.access = access).await;
    (cluster, secrets)
}

fn key(name: &str) -> (String, Record) {
    Record::generate(name.into()).expect("random numbers")
}

fn client(cluster: &Cluster, secret: &str) -> Client {
    Client::new(cluster.address).with("authorization", &format!("Bearer {secret}"))
}

#[tokio::test]
async fn without_a_key_there_is_health_and_nothing_else() {
    let (cluster, secrets) = cluster(vec![key("alice")]).await;
    let nobody = Client::new(cluster.address);
    assert_eq!(nobody.get("/healthz").await.status, 200);
    assert_eq!(nobody.get("/readyz").await.status, 200);
    let wrong = client(&cluster, "sk-xomni-wrong");
    for client in [nobody, wrong] {
        for path in ["/v1/models", "/v1/cluster", "/metrics"] {
            let answer = client.get(path).await;
            assert_eq!(answer.status, 401, "{path}");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
        let answer = client.post(PATH, &body(json!({}))).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
    }
    let refused = ImagesClient::new(cluster.channel())
        .generate(GenerateImagesRequest::default())
        .await;
    assert_eq!(refused.expect_err("no key").code(), Code::Unauthenticated);
    assert_eq!(cluster.jobs(), 0);

    let alice = client(&cluster, &secrets[0]);
    assert_eq!(alice.get("/v1/models").await.status, 200);
    let forbidden = alice.get("/metrics").await;
    assert_eq!(forbidden.status, 403);
    assert_eq!(forbidden.json()["error"]["type"], "permission_error");
    let small = body(json!({"size": "16x16"}));
    assert_eq!(alice.post(PATH, &small).await.status, 200);
    let mut request = Request::new(GenerateImagesRequest {
        prompt: "a".into(),
        size: Some("16x16".into()),
        ..Default::default()
    });
    let value = format!("Bearer {}", secrets[0]).parse().expect("ascii");
    request.metadata_mut().insert("authorization", value);
    let stream = ImagesClient::new(cluster.channel()).generate(request).await;
    stream.expect("let in");
}

#[tokio::test]
async fn a_key_has_its_limits() {
    let (secret, record) = key("often");
    let often = Record {
        requests_per_minute: Some(2),
        ..record
    };
    let (other, record) = key("many");
    let many = Record {
        concurrent_images: Some(2),
        ..record
    };
    let (cluster, _) = cluster(vec![(secret.clone(), often), (other.clone(), many)]).await;
    let often = client(&cluster, &secret);
    let small = body(json!({"size": "16x16"}));
    for _ in 0..2 {
        assert_eq!(often.post(PATH, &small).await.status, 200);
    }
    let limited = often.post(PATH, &small).await;
    assert_eq!(limited.status, 429);
    assert_eq!(limited.json()["error"]["code"], "rate_limit_exceeded");
    let wait: u64 = limited.header("retry-after").parse().expect("seconds");
    assert!((1..=30).contains(&wait), "{wait}");

    let many = client(&cluster, &other);
    let answer = many.post(PATH, &body(json!({"n": 3}))).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["param"], "n");
    let long = json!({"n": 2, "size": "256x256", "stream": true, "progress": true});
    let mut running = many.stream(PATH, &body(long)).await;
    running.event().await.expect("it runs");
    let limited = many.post(PATH, &small).await;
    assert_eq!(limited.status, 429);
    assert!(!limited.header("retry-after").is_empty());
    drop(running);
    cluster.idle().await;
    assert_eq!(many.post(PATH, &small).await.status, 200);
}

/// Whether `xomni` ends well with these arguments and this key in its environment.
async fn xomni(cluster: &Cluster, arguments: &[&str], secret: &str) -> (bool, String) {
    let folder = tempfile::tempdir().expect("folder");
    let mut command = Command::new(binary("xomni"));
    command.args(arguments).current_dir(folder.path());
    command.args(["--server", &cluster.address.to_string()]);
    command.env("XOMNI_API_KEY", secret);
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output.expect("no panic").expect("xomni runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

#[tokio::test]
async fn every_command_sends_the_key_of_its_environment() {
    let (cluster, secrets) = cluster(vec![key("alice")]).await;
    for arguments in [
        &["generate", "a red fox", "--size", "16x16"][..],
        &["chat", "What is a fox?", "--max-tokens", "1"],
        &["status"],
    ] {
        let (done, said) = xomni(&cluster, arguments, &secrets[0]).await;
        assert!(done, "{arguments:?}: {said}");
        let (done, said) = xomni(&cluster, arguments, "sk-xomni-wrong").await;
        assert!(!done && said.contains("API key"), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn keys_that_are_made_are_let_in_from_a_file_or_the_environment() {
    let folder = tempfile::tempdir().expect("folder");
    let limits = ["--requests-per-minute", "60", "--concurrent-images", "4"];
    let made = Command::new(binary("xomni"))
        .args(["key", "alice", "--priority", "-3", "--operator"])
        .args(limits)
        .output()
        .expect("xomni runs");
    assert!(made.status.success());
    let line = String::from_utf8(made.stdout).expect("text");
    let record: Record = serde_json::from_str(&line).expect("a record");
    let kept = (record.requests_per_minute, record.concurrent_images);
    assert_eq!((kept, record.priority), ((Some(60), Some(4)), Some(-3)));
    let said = String::from_utf8(made.stderr).expect("text");
    let secret = said.split_whitespace().last().expect("a key");
    assert!(!line.contains(secret), "only its hash is kept");

    let file = folder.path().join("keys.jsonl");
    fs::write(&file, &line).expect("written");
    let file = file.display().to_string();
    let model = Fixture::open().x_omni().display().to_string();
    // Nobody is there: who may call does not depend on it.
    let common = ["--model", &model, "--etcd", "127.0.0.1:1"];
    let by_file = [&common[..], &["--api-keys", &file]].concat();
    for (arguments, variables) in [
        (&by_file[..], &[][..]),
        (&common, &[("XOMNI_API_KEYS", &*line)]),
    ] {
        let program = "xomni-coordinator";
        let mut process = Process::start("keys", program, arguments, variables, folder.path());
        let address = process.wait_for_line("coordinator ready at ");
        let client = Client::new(address.parse().expect("an address"));
        assert_eq!(client.get("/v1/models").await.status, 401);
        let client = client.with("authorization", &format!("Bearer {secret}"));
        for path in ["/v1/models", "/metrics"] {
            assert_eq!(client.get(path).await.status, 200, "{path}");
        }
    }
}
