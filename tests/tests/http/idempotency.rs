//! `Idempotency-Key`: one answer a key.

use serde_json::json;
use xomni_tests::{
    coordinator::{Cluster, ROOMY},
    http::Client,
};

use crate::images::{PATH, body};

#[tokio::test]
async fn the_same_request_is_answered_once() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address).with("idempotency-key", "k-1");
    // Without a seed, each would be another picture.
    let request = body(json!({"seed": null}));
    let (first, second) = tokio::join!(client.post(PATH, &request), client.post(PATH, &request));
    assert_eq!((first.status, second.status), (200, 200));
    let third = client.post(PATH, &request).await;
    assert_eq!(third.header("idempotency-replayed"), "true");
    assert!(first.body == second.body && first.body == third.body);
    assert_ne!(first.header("x-request-id"), third.header("x-request-id"));
    assert_eq!(cluster.jobs(), 1);

    let other = client.post(PATH, &body(json!({"seed": 9}))).await;
    assert_eq!(other.status, 409);
    assert_eq!(other.json()["error"]["code"], "idempotency_key_reused");
    assert_eq!(cluster.jobs(), 1);
}

#[tokio::test]
async fn streams_are_replayed_and_refusals_are_not() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let request = body(json!({"seed": null, "stream": true}));
    let keyed = client.clone().with("idempotency-key", "k-2");
    let mut first = keyed.stream(PATH, &request).await;
    let mut second = keyed.stream(PATH, &request).await;
    let picture = first.event().await.expect("a picture");
    assert!(second.event().await == Some(picture));
    assert_eq!(cluster.jobs(), 1);

    let keyed = client.with("idempotency-key", "k-3");
    let wrong = keyed.post(PATH, &body(json!({"n": 0}))).await;
    assert_eq!(wrong.status, 400);
    assert_eq!(wrong.json()["error"]["param"], "n");
    let right = keyed.post(PATH, &body(json!({}))).await;
    assert_eq!(right.status, 200);
}

#[tokio::test]
async fn work_that_nobody_waits_for_ends() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address).with("idempotency-key", "k-4");
    let long = body(json!({"size": "256x256", "stream": true, "progress": true}));
    let mut streamed = client.stream(PATH, &long).await;
    streamed.event().await.expect("it runs");
    drop(streamed);
    cluster.idle().await;
}
