//! A coordinator that is full says when to come again, and keeps its word.

use std::time::Duration;

use serde_json::json;
use xomni_coordinator::admission::Bounds;
use xomni_tests::{coordinator::Cluster, http::Client};

use crate::images::{PATH, body};

#[tokio::test]
async fn whoever_comes_again_when_told_is_taken() {
    let bounds = Bounds {
        in_flight: 1,
        queue: 1,
    };
    let cluster = Cluster::start(1, bounds).await;
    let client = Client::new(cluster.address);
    // From here on it is known how long a picture takes.
    let request = body(json!({"size": "128x128"}));
    assert_eq!(client.post(PATH, &request).await.status, 200);
    let streamed = body(json!({"size": "128x128", "stream": true, "progress": true}));
    let mut running = client.stream(PATH, &streamed).await;
    running.event().await.expect("it runs");
    let waiting = client.stream(PATH, &streamed).await;
    assert_eq!(waiting.status, 200);
    let refused = client.post(PATH, &request).await;
    assert_eq!(refused.status, 429);
    let error = &refused.json()["error"];
    assert_eq!(error["type"], "rate_limit_error");
    assert!(error["limit"].is_string(), "{error}");
    let number = |name| refused.header(name).parse::<u64>().expect("a number");
    let told = Duration::from_millis(number("retry-after-ms"));
    assert_eq!(
        number("retry-after"),
        told.as_millis().div_ceil(1000) as u64
    );
    let others = tokio::spawn(async { (running.whole().await, waiting.whole().await) });
    // The rate of a busy machine varies: whoever is told a time again comes again.
    let mut answer = refused;
    for _ in 0..5 {
        if answer.status != 429 {
            break;
        }
        let told = answer.header("retry-after-ms").parse::<u64>();
        tokio::time::sleep(Duration::from_millis(told.expect("a number"))).await;
        answer = client.post(PATH, &request).await;
    }
    assert_eq!(answer.status, 200);
    let (first, second) = others.await.expect("no panic");
    assert_eq!((first.status, second.status), (200, 200));
}
