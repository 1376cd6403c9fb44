//! Ten prompts at once, undisturbed and while processes are killed.

use std::fs;

use serde::Deserialize;
use tokio::{sync::watch, task::JoinSet};
use xomni_proto::images::GenerateImagesRequest;
use xomni_tests::{
    cluster::{Cluster, Shape, in_time},
    drawing::{Drawing, alone, request},
};

#[derive(Deserialize)]
struct Line {
    prompt: String,
    size: String,
}

/// The first ten captions that X-Omni-nano was not trained on.
fn requests() -> Vec<GenerateImagesRequest> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/nano/heldout.jsonl");
    let text = fs::read_to_string(file).expect("captions");
    let of = |line| {
        let Line { prompt, size } = serde_json::from_str(line).expect("a caption");
        request(&prompt, &size)
    };
    text.lines().take(10).map(of).collect()
}

/// Runs `loss` as soon as the first tokens of ten requests are there; no picture may change. It costs some attempts of `stage`.
async fn draw_through(stage: Option<&str>, loss: impl FnOnce(&mut Cluster)) {
    let all = requests();
    let mut expected = vec![];
    for request in &all {
        expected.push(alone(request).await);
    }
    let mut cluster = Cluster::start(Shape::new(1, 2, 2)).await;
    let (begun, mut beginning) = watch::channel(false);
    let mut requests = JoinSet::new();
    for (index, request) in all.into_iter().enumerate() {
        let (channel, begun) = (cluster.channel.clone(), begun.clone());
        requests.spawn(async move {
            let mut drawing = Drawing::begin(&channel, request).await?;
            drawing.tokens(1).await?;
            begun.send_replace(true);
            Ok::<_, tonic::Status>((index, drawing.pictures().await?))
        });
    }
    let begins = beginning.wait_for(|begun| *begun);
    drop(in_time("the first tokens", begins).await.expect("runs"));
    loss(&mut cluster);
    for drawn in in_time("all pictures", requests.join_all()).await {
        let (index, pictures) = drawn.expect("a picture");
        assert!(pictures == expected[index], "picture {index}");
    }
    let metrics = cluster.coordinator.metrics();
    for other in ["backbone", "decoder"] {
        let retries = metrics.get(&format!("xomni_retries_total{{stage=\"{other}\"}}"));
        assert_eq!(retries > 0.0, stage == Some(other), "{other}: {retries}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn six_processes_draw_what_one_process_draws() {
    draw_through(None, |_| ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_rank_that_returns_changes_no_picture() {
    draw_through(Some("backbone"), |cluster| {
        cluster.groups[0][1].process.kill();
        cluster.restart_rank(0, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_that_returns_changes_no_picture() {
    draw_through(Some("backbone"), |cluster| {
        cluster.groups[0][0].process.kill();
        cluster.restart_rank(0, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_decoder_changes_no_picture() {
    draw_through(Some("decoder"), |cluster| {
        cluster.decoders[0].process.kill()
    })
    .await;
}
