//! A coordinator that is full says when to come again, and keeps its word.

use std::time::Duration;

use serde_json::json;
use xomni_coordinator::admission::Bounds;
use xomni_tests::{
    coordinator::{Cluster, SOON},
    http::{Answer, Client},
};

use crate::images::{PATH, body};

/// Time of each of a picture's four tokens. Beside it developing them takes next to nothing: the
/// rate is known, whatever else the machine does.
const PACE: Duration = Duration::from_millis(100);
const SIZE: &str = "32x32";

/// How long a refused client is told to wait.
fn told(refused: &Answer) -> Duration {
    assert_eq!(refused.status, 429);
    let error = &refused.json()["error"];
    assert_eq!(error["type"], "rate_limit_error");
    assert!(error["limit"].is_string(), "{error}");
    let number = |name| refused.header(name).parse::<u64>().expect("a number");
    let told = Duration::from_millis(number("retry-after-ms"));
    let seconds = told.as_millis().div_ceil(1000) as u64;
    assert_eq!(number("retry-after"), seconds);
    told
}

#[tokio::test]
async fn whoever_comes_again_when_told_is_taken() {
    let bounds = Bounds {
        in_flight: 1,
        queue: 1,
    };
    let cluster = Cluster::start(1, bounds).await;
    cluster.workers[0].pace.send_replace(PACE);
    let client = Client::new(cluster.address);
    let request = body(json!({"size": SIZE, "num_inference_steps": 1}));
    // From here on it is known how long a picture takes; the more of them, the better.
    assert_eq!(client.post(PATH, &request).await.status, 200);
    let mut streamed = request.clone();
    streamed["stream"] = true.into();
    streamed["progress"] = true.into();
    for _ in 0..3 {
        let mut running = client.stream(PATH, &streamed).await;
        running.event().await.expect("it runs");
        let waiting = client.stream(PATH, &streamed).await;
        assert_eq!(waiting.status, 200);
        let told = told(&client.post(PATH, &request).await);
        assert!(told >= 4 * PACE, "no picture is done sooner: {told:?}");
        assert!(told < 10 * SOON, "so few pictures are soon done: {told:?}");
        let others = tokio::spawn(async { (running.whole().await, waiting.whole().await) });
        tokio::time::sleep(told).await;
        assert_eq!(client.post(PATH, &request).await.status, 200);
        let (first, second) = others.await.expect("no panic");
        assert_eq!((first.status, second.status), (200, 200));
    }
}
