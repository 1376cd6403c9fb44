//! Pictures as server-sent events.

use serde_json::{Value, json};
use xomni_tests::{
    coordinator::{Cluster, ROOMY},
    http::{Client, ServerEvent},
};

use crate::images::{PATH, body, decoded};

async fn events(client: &Client, more: Value) -> Vec<ServerEvent> {
    let mut streamed = client.stream(PATH, &body(more)).await;
    assert_eq!(streamed.status, 200);
    let kind = streamed.headers.get("content-type").expect("a type");
    assert_eq!(kind, "text/event-stream");
    let mut events = vec![];
    while let Some(event) = streamed.event().await {
        assert_eq!(event.data["type"], event.event.as_str());
        events.push(event);
    }
    events
}

#[tokio::test]
async fn pictures_come_complete_and_with_their_index() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let whole = client.post(PATH, &body(json!({"n": 2}))).await.json();
    let events = events(&client, json!({"n": 2, "stream": true})).await;
    assert_eq!(events.len(), 2, "{events:?}");
    for event in events {
        assert_eq!(event.event, "image_generation.completed");
        let index = event.data["index"].as_u64().expect("an index") as usize;
        assert!(decoded(&event.data) == decoded(&whole["data"][index]));
        assert_eq!(event.data["usage"]["output_tokens"], 24);
        assert_eq!(event.data["size"], "64x96");
    }
}

#[tokio::test]
async fn progress_is_told_where_it_is_asked_for() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let events = events(&client, json!({"stream": true, "progress": true})).await;
    let stages: Vec<_> = events
        .iter()
        .filter(|event| event.event == "image_generation.progress")
        .map(|event| event.data["stage"].as_str().expect("a stage"))
        .collect();
    assert_eq!(stages.first(), Some(&"started"));
    for stage in ["drawing", "encoding", "denoising", "finishing"] {
        assert!(stages.contains(&stage), "{stage} in {stages:?}");
    }
    let drawn = events
        .iter()
        .rfind(|event| event.data["stage"] == "drawing");
    let drawn = &drawn.expect("tokens").data;
    assert_eq!((&drawn["done"], &drawn["total"]), (&json!(24), &json!(24)));
    let last = events.last().expect("a picture");
    assert_eq!(last.event, "image_generation.completed");
}

#[tokio::test]
async fn partial_pictures_are_real_and_change_nothing() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let plain = events(&client, json!({"stream": true})).await;
    // Of 24 tokens, pictures fall due with 8 and 16; each is waited for.
    let most = &cluster.workers[0].most;
    most.send_replace(10);
    let asking = body(json!({"stream": true, "partial_images": 2}));
    let mut streamed = client.stream(PATH, &asking).await;
    let mut pictures = vec![];
    for number in 0..2 {
        let event = streamed.event().await.expect("a picture");
        assert_eq!(event.event, "image_generation.partial_image");
        assert_eq!(event.data["partial_image_index"], number);
        assert_eq!(event.data["size"], "64x96");
        let picture = decoded(&event.data);
        let read = image::load_from_memory(&picture).expect("readable");
        assert_eq!((read.width(), read.height()), (64, 96));
        pictures.push(picture);
        most.send_replace(if number == 0 { 18 } else { usize::MAX });
    }
    let complete = streamed.event().await.expect("a picture");
    assert_eq!(complete.event, "image_generation.completed");
    assert!(decoded(&complete.data) == decoded(&plain[0].data));
    pictures.push(decoded(&complete.data));
    assert!(pictures[0] != pictures[1] && pictures[1] != pictures[2]);
    assert_eq!(streamed.event().await, None);
    cluster.idle().await;
}

#[tokio::test]
async fn a_failure_is_the_last_event_in_the_envelope() {
    let cluster = Cluster::start_with(1, |setup| {
        setup.timeout = std::time::Duration::from_millis(300);
    });
    let cluster = cluster.await;
    let client = Client::new(cluster.address);
    let request = body(json!({"size": "256x256", "stream": true, "n": 4}));
    let mut streamed = client.stream(PATH, &request).await;
    let event = streamed.event().await.expect("a failure");
    assert_eq!(event.event, "error");
    assert_eq!(event.data["error"]["code"], "timeout");
    let id = streamed.headers.get("x-request-id").expect("a name");
    assert_eq!(
        event.data["error"]["request_id"],
        id.to_str().expect("text")
    );
    assert_eq!(streamed.event().await, None);
}
