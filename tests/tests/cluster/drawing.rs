//! Ten prompts at once, undisturbed and while processes are killed.

use std::fs;

use serde::Deserialize;
use tokio::{sync::watch, task::JoinSet};
use xomni_tests::{
    cluster::{Cluster, Shape, in_time},
    drawing::{Drawing, one_process, request},
};

const SIZE: &str = "64x64";

#[derive(Deserialize)]
struct Line {
    prompt: String,
}

/// Ten prompts, five English and five Chinese; `XOMNI_PROMPTS` names another file.
fn prompts() -> Vec<String> {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/data/prompts.jsonl");
    let file = std::env::var("XOMNI_PROMPTS").unwrap_or_else(|_| committed.to_owned());
    let text = fs::read_to_string(file).expect("prompts");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a prompt"));
    let all: Vec<String> = lines.map(|Line { prompt }| prompt).collect();
    let half = all.len() / 2;
    all[..5]
        .iter()
        .chain(&all[half..half + 5])
        .cloned()
        .collect()
}

/// Runs `loss` as soon as the first tokens of ten requests are there; no picture may change.
async fn draw_through(loss: impl FnOnce(&mut Cluster)) {
    let prompts = prompts();
    let expected = one_process(&prompts, SIZE);
    let mut cluster = Cluster::start(Shape::new(1, 2, 2)).await;
    let (begun, mut beginning) = watch::channel(false);
    let mut requests = JoinSet::new();
    for (index, prompt) in prompts.into_iter().enumerate() {
        let (channel, begun) = (cluster.channel.clone(), begun.clone());
        requests.spawn(async move {
            let mut drawing = Drawing::begin(&channel, request(&prompt, SIZE)).await?;
            drawing.tokens(1).await?;
            begun.send_replace(true);
            Ok::<_, tonic::Status>((index, drawing.picture().await?))
        });
    }
    let begins = beginning.wait_for(|begun| *begun);
    drop(in_time("the first tokens", begins).await.expect("runs"));
    loss(&mut cluster);
    for drawn in in_time("all pictures", requests.join_all()).await {
        let (index, picture) = drawn.expect("a picture");
        assert!(picture == expected[index], "picture {index}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn six_processes_draw_what_one_process_draws() {
    draw_through(|_| ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_rank_that_returns_changes_no_picture() {
    draw_through(|cluster| {
        cluster.groups[0][1].process.kill();
        cluster.restart_rank(0, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_that_returns_changes_no_picture() {
    draw_through(|cluster| {
        cluster.groups[0][0].process.kill();
        cluster.restart_rank(0, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_decoder_changes_no_picture() {
    draw_through(|cluster| cluster.decoders[0].process.kill()).await;
}
