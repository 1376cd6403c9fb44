//! Clients that leave, and more of them than there is room for.

use tonic::{Code, Status};
use xomni_tests::{
    cluster::{Cluster, Shape, eventually, in_time},
    drawing::{Drawing, alone},
    process::PATIENCE,
};

use crate::{PICTURES, long};

/// When a refused client may come back, in milliseconds.
fn retry_after(refused: &Status) -> u64 {
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let told = refused.metadata().get("retry-after-ms").expect("told");
    told.to_str().expect("text").parse().expect("a number")
}

/// Waits until the leader of the only group holds what is wanted.
async fn until_kv(cluster: &Cluster, what: &str, wanted: impl Fn(f64, f64) -> bool) {
    eventually(PATIENCE, what, async || {
        let metrics = cluster.groups[0][0].metrics();
        let kv = ["xomni_kv_blocks_free", "xomni_kv_blocks"].map(|name| metrics.get(name));
        if wanted(kv[0], kv[1]) {
            Ok(())
        } else {
            Err(kv)
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_a_client_that_leaves_is_free() {
    let cluster = Cluster::start(Shape::new(1, 2, 1)).await;
    let mut drawing = Drawing::begin(&cluster.channel, long())
        .await
        .expect("taken");
    drawing.tokens(1).await.expect("draws");
    until_kv(&cluster, "memory in use", |free, all| free < all).await;
    let waiting = cluster.decoders[0].metrics();
    assert_eq!(waiting.get("xomni_decoder_jobs"), f64::from(PICTURES));

    drop(drawing);
    until_kv(&cluster, "free memory", |free, all| free == all).await;
    eventually(PATIENCE, "nothing left", async || {
        let samples = [
            (&cluster.groups[0][0], "xomni_backbone_running_jobs"),
            (&cluster.groups[0][0], "xomni_backbone_backlog_rows"),
            (&cluster.decoders[0], "xomni_decoder_jobs"),
            (&cluster.decoders[0], "xomni_decoder_queue_jobs"),
            (&cluster.decoders[0], "xomni_decoder_backlog_steps"),
            (&cluster.coordinator, "xomni_requests_in_flight"),
        ];
        let left = samples.map(|(member, sample)| (sample, member.metrics().get(sample)));
        if left.iter().all(|(_, value)| *value == 0.0) {
            Ok(())
        } else {
            Err(left)
        }
    })
    .await;
    let counted = cluster.coordinator.metrics();
    assert_eq!(counted.get("xomni_requests_total{code=\"CANCELLED\"}"), 1.0);
    let jobs = cluster.groups[0][0].metrics();
    assert_eq!(
        jobs.get("xomni_backbone_jobs_total{outcome=\"cancelled\"}"),
        1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_coordinator_refuses_and_disturbs_nobody() {
    let expected = alone(&long()).await;
    let cluster = Cluster::start(Shape {
        coordinator: &["--max-in-flight", "1", "--max-queue", "1"],
        ..Shape::new(1, 1, 1)
    })
    .await;
    let begin = || Drawing::begin(&cluster.channel, long());
    let mut running = begin().await.expect("taken");
    running.tokens(1).await.expect("draws");
    let waiting = begin().await.expect("waits");
    let refused = begin().await.expect_err("full");
    assert!(retry_after(&refused) > 0);
    let metrics = cluster.coordinator.metrics();
    assert_eq!(metrics.get("xomni_requests_in_flight"), 1.0);
    assert_eq!(metrics.get("xomni_queue_requests"), 1.0);
    for drawing in [running, waiting] {
        let pictures = in_time("pictures", drawing.pictures()).await;
        assert!(pictures.expect("undisturbed") == expected);
    }
    let metrics = cluster.coordinator.metrics();
    assert_eq!(
        metrics.get("xomni_requests_total{code=\"RESOURCE_EXHAUSTED\"}"),
        1.0
    );
    assert_eq!(metrics.get("xomni_queue_seconds_count"), 2.0);
}

/// Room for the pictures of one job and none for another's: 144 tokens and a prompt each, in blocks of 16 positions of 128 KiB.
const SCARCE: &[&str] = &["--kv-memory", "6", "--max-queue", "1"];

#[tokio::test(flavor = "multi_thread")]
async fn a_full_group_says_when_to_come_back_and_disturbs_nobody() {
    let expected = alone(&long()).await;
    let cluster = Cluster::start(Shape {
        backbone: SCARCE,
        ..Shape::new(1, 1, 1)
    })
    .await;
    // The rate of the group becomes known.
    let pictures = in_time("pictures", cluster.draw(long())).await;
    assert!(pictures.expect("pictures") == expected);
    let begin = || Drawing::begin(&cluster.channel, long());
    let mut running = begin().await.expect("taken");
    running.tokens(1).await.expect("draws");
    let waiting = begin().await.expect("taken");
    eventually(PATIENCE, "a job in the queue", async || {
        let metrics = cluster.groups[0][0].metrics();
        let queued = metrics.get("xomni_backbone_queue_jobs");
        if queued == 1.0 { Ok(()) } else { Err(metrics) }
    })
    .await;
    let refused = begin().await.expect("admitted").pictures().await;
    let refused = refused.expect_err("full");
    assert!(retry_after(&refused) > 0);
    let metrics = cluster.groups[0][0].metrics();
    assert_eq!(
        metrics.get("xomni_backbone_jobs_total{outcome=\"rejected\"}"),
        1.0
    );
    for drawing in [running, waiting] {
        let pictures = in_time("pictures", drawing.pictures()).await;
        assert!(pictures.expect("undisturbed") == expected);
    }
}
