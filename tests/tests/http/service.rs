//! What operators and clients ask before they ask for work, and what is not there.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use xomni_tests::{
    coordinator::{Cluster, ROOMY, SOON},
    http::Client,
};

use crate::images::{PATH, body};

#[tokio::test]
async fn it_is_alive_ready_and_lists_its_model() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    assert_eq!(client.get("/healthz").await.status, 200);
    assert_eq!(client.get("/readyz").await.status, 200);
    let list = client.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "tiny");
    assert_eq!(client.get("/v1/models/tiny").await.json(), list["data"][0]);
    let missing = client.get("/v1/models/a/b").await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.json()["error"]["code"], "model_not_found");
    assert_eq!(missing.json()["error"]["value"], "a/b");
    let status = client.get("/v1/cluster").await.json();
    assert_eq!(status["groups"][0]["takes_work"], true);
    assert_eq!(status["decoders"][0]["id"], "decoder0");
    let metrics = client.get("/metrics").await;
    let text = String::from_utf8(metrics.body).expect("text");
    assert!(text.contains("xomni_requests_in_flight 0"), "{text}");
}

#[tokio::test]
async fn without_workers_it_is_alive_but_not_ready() {
    let cluster = Cluster::start(1, ROOMY).await;
    cluster.membership.send_replace(Arc::default());
    cluster.serving(false).await;
    let client = Client::new(cluster.address);
    assert_eq!(client.get("/healthz").await.status, 200);
    let answer = client.get("/readyz").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["error"]["message"], "no backbone is ready");
}

#[tokio::test]
async fn work_that_does_not_get_on_makes_it_not_ready() {
    let patience = Duration::from_millis(200);
    let cluster = Cluster::start_with(1, |setup| setup.stall_timeout = patience).await;
    let client = Client::new(cluster.address);
    let most = &cluster.workers[0].most;
    most.send_replace(4);
    let streamed = body(json!({"size": "96x64", "stream": true}));
    let running = client.stream(PATH, &streamed).await;
    let stalled = async {
        loop {
            let answer = client.get("/readyz").await;
            if answer.status == 503 {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let stalled = timeout(SOON, stalled).await.expect("noticed");
    assert_eq!(stalled.json()["error"]["code"], "stalled");
    assert_eq!(client.get("/healthz").await.status, 200);
    most.send_replace(usize::MAX);
    assert_eq!(running.whole().await.status, 200);
    cluster.idle().await;
    assert_eq!(client.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn what_is_not_there_is_said_in_the_envelope() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let nowhere = client.get("/v1/nothing").await;
    assert_eq!(nowhere.status, 404);
    assert_eq!(nowhere.json()["error"]["type"], "invalid_request_error");
    let method = client.post("/v1/models", &json!({})).await;
    assert_eq!(method.status, 405);
    assert_eq!(method.json()["error"]["code"], "method_not_allowed");
    assert_eq!(method.header("allow"), "GET,HEAD");
}

#[tokio::test]
async fn every_answer_is_named() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let own = client.get("/v1/nothing").await;
    assert_eq!(own.header("x-request-id").len(), 32);
    assert_eq!(
        own.json()["error"]["request_id"],
        own.header("x-request-id")
    );
    let given = client.clone().with("x-request-id", "mine-1");
    for path in ["/healthz", "/v1/models", "/nothing"] {
        assert_eq!(given.get(path).await.header("x-request-id"), "mine-1");
    }
    let endless = client.with("x-request-id", &"x".repeat(129));
    assert_eq!(
        endless.get("/healthz").await.header("x-request-id").len(),
        32
    );
}

#[tokio::test]
async fn clients_that_send_nothing_or_half_a_head_are_left() {
    let cluster = Cluster::start(1, ROOMY).await;
    let half = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n";
    let mut connections = vec![];
    for said in ["", "PRI * HTTP/2.0\r\n", half] {
        let mut connection = TcpStream::connect(cluster.address).await.expect("connects");
        connection.write_all(said.as_bytes()).await.expect("sent");
        connections.push(connection);
    }
    for mut connection in connections {
        let mut answer = vec![];
        // A reset is as good as an end.
        let left = tokio::time::timeout(
            2 * xomni_tests::coordinator::SOON,
            connection.read_to_end(&mut answer),
        );
        let _ = left.await.expect("left in time");
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
}
