//! Losing etcd is not losing the cluster.

use std::time::{Duration, Instant};

use xomni_tests::{
    cluster::{Cluster, Shape, in_time},
    drawing::{Drawing, alone},
    process::PATIENCE,
};

use crate::{long, short};

/// Three times as long as a lease.
const OUTAGE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn thirty_seconds_without_etcd_disturb_nothing() {
    let (of_long, of_short) = (alone(&long()).await, alone(&short()).await);
    let mut cluster = Cluster::start(Shape::new(1, 2, 1)).await;
    let before = cluster.status().await;
    let mut drawing = Drawing::begin(&cluster.channel, long())
        .await
        .expect("taken");
    drawing.tokens(1).await.expect("draws");

    cluster.etcd.stop();
    let stopped = Instant::now();
    let pictures = in_time("the pictures in flight", drawing.pictures()).await;
    assert!(pictures.expect("pictures") == of_long);
    let away = cluster
        .until("the outage to be seen", |status| {
            !status.membership.expect("told").current
        })
        .await;
    assert_eq!(away.groups[0].epoch, before.groups[0].epoch);
    while stopped.elapsed() < OUTAGE {
        let picture = in_time("a new picture", cluster.draw(short())).await;
        assert!(picture.expect("a picture") == of_short);
    }
    cluster.etcd.start();

    let back = cluster
        .until("etcd to be seen", |status| {
            status.membership.expect("told").current
        })
        .await;
    assert_eq!(
        back.groups[0].epoch, before.groups[0].epoch,
        "nothing formed anew"
    );
    // Who asks etcd now finds everyone.
    let watcher = xomni_cluster::Cluster::connect(&cluster.etcd.endpoints(), "default");
    let watcher = watcher.expect("endpoints");
    let mut workers = watcher.watch_workers();
    let all = workers.wait_for(|seen| seen.is_current() && seen.workers().count() == 3);
    let all = tokio::time::timeout(PATIENCE, all).await;
    drop(
        all.expect("two ranks and a decoder in time")
            .expect("watched"),
    );
    cluster.until_whole().await;
    let picture = in_time("a picture", cluster.draw(short())).await;
    assert!(picture.expect("a picture") == of_short);
    let metrics = cluster.coordinator.metrics();
    for stage in ["backbone", "decoder"] {
        let retries = metrics.get(&format!("xomni_retries_total{{stage=\"{stage}\"}}"));
        assert_eq!(retries, 0.0, "{stage}");
    }
    assert_eq!(metrics.get("xomni_etcd_connected"), 1.0);
}
