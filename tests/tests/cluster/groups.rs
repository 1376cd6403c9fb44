//! Two groups of two ranks: they share load, and each goes on where the other is lost.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use xomni_tests::{
    cluster::{Cluster, Shape, in_time},
    drawing::{Drawing, alone, draw},
    process::wait_within,
};

use crate::{FEW_TOKENS, PICTURES, TOKENS, long, short};

/// Tokens of one picture that are there when a rank is lost.
const BEFORE: u32 = 40;

/// A sample of every leader, and of every decoder.
fn work(cluster: &Cluster) -> [Vec<f64>; 2] {
    let leaders = cluster.groups.iter().map(|ranks| &ranks[0]);
    [
        leaders
            .map(|one| one.metrics().get("xomni_backbone_tokens_total"))
            .collect(),
        cluster
            .decoders
            .iter()
            .map(|one| one.metrics().get("xomni_decoder_pictures_total"))
            .collect(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn two_groups_and_two_decoders_share_load() {
    let expected = alone(&short()).await;
    let cluster = Cluster::start(Shape::new(2, 2, 2)).await;
    let before = work(&cluster);
    let mut requests = JoinSet::new();
    for _ in 0..8 {
        let channel = cluster.channel.clone();
        requests.spawn(async move { draw(&channel, short()).await });
    }
    for picture in in_time("all pictures", requests.join_all()).await {
        assert!(picture.expect("a picture") == expected);
    }
    for (before, after) in before.into_iter().zip(work(&cluster)) {
        let done: Vec<_> = before.iter().zip(after).map(|(b, a)| a - b).collect();
        assert!(done.iter().all(|work| *work > 0.0), "{done:?}");
    }
    for ranks in &cluster.groups {
        let [leader, follower] = &ranks[..] else {
            panic!("{ranks:?}")
        };
        let steps = [leader, follower].map(|rank| rank.metrics().get("xomni_backbone_steps_total"));
        assert!(steps[0] > 0.0 && steps[0] == steps[1], "{steps:?}");
    }
    let metrics = cluster.coordinator.metrics();
    let counted = [
        ("xomni_requests_total{code=\"OK\"}", 8.0),
        ("xomni_images_total", 8.0),
        ("xomni_tokens_total", 8.0 * f64::from(FEW_TOKENS)),
        ("xomni_first_token_seconds_count", 8.0),
        ("xomni_ready_workers{stage=\"backbone\"}", 2.0),
        ("xomni_ready_workers{stage=\"decoder\"}", 2.0),
        ("xomni_requests_in_flight", 0.0),
        ("xomni_etcd_connected", 1.0),
    ];
    for (sample, value) in counted {
        assert_eq!(metrics.get(sample), value, "{sample}");
    }
}

/// Loses a rank of the group that draws an image, by `lose`, so that the group is lost within
/// `limit`; the image goes on elsewhere. Then the rank returns by `heal`.
async fn lose_a_rank(
    limit: Duration,
    lose: impl FnOnce(&mut Cluster, usize),
    heal: impl FnOnce(&mut Cluster, usize),
) {
    let expected = alone(&long()).await;
    let mut cluster = Cluster::start(Shape::new(2, 2, 1)).await;
    let whole = cluster.status().await;
    let [before, _] = work(&cluster);
    let mut drawing = Drawing::begin(&cluster.channel, long())
        .await
        .expect("taken");
    drawing.tokens(BEFORE).await.expect("draws");
    let busy = cluster.busy_group().await;
    let other = 1 - busy;

    let lost_at = Instant::now();
    lose(&mut cluster, busy);
    let leader = &cluster.groups[busy][0];
    wait_within(limit, "the group to be lost", || {
        (leader.metrics().get("xomni_backbone_ready") == 0.0).then_some(())
    });
    let avoided = |status: &xomni_proto::cluster::ClusterStatus| !status.groups[busy].takes_work;
    let left = limit.saturating_sub(lost_at.elapsed()) + Duration::from_secs(1);
    cluster
        .until_within(left, "the group to leave routing", avoided)
        .await;

    let pictures = in_time("the pictures", drawing.pictures()).await;
    assert!(pictures.expect("pictures") == expected);
    let [after, _] = work(&cluster);
    let resumed = after[other] - before[other];
    let all = f64::from(PICTURES * TOKENS);
    assert!(
        0.0 < resumed && resumed <= all - f64::from(BEFORE),
        "{resumed} of {all} tokens were drawn by the other group"
    );
    let retries = "xomni_retries_total{stage=\"backbone\"}";
    assert_eq!(cluster.coordinator.metrics().get(retries), 1.0);

    heal(&mut cluster, busy);
    let again = cluster
        .until("the group to form again", |status| {
            let group = &status.groups[busy];
            group.takes_work && group.epoch > whole.groups[busy].epoch
        })
        .await;
    assert_eq!(
        again.groups[other].epoch, whole.groups[other].epoch,
        "the other group is undisturbed"
    );
    // Of two requests at once, each group draws one.
    let [before, _] = work(&cluster);
    let two = [cluster.draw(long()), cluster.draw(long())];
    let [one, two] = two.map(|pictures| in_time("pictures", pictures));
    let (one, two) = tokio::join!(one, two);
    for pictures in [one, two] {
        assert!(pictures.expect("pictures") == expected);
    }
    let [after, _] = work(&cluster);
    assert!(after[busy] > before[busy], "{before:?} {after:?}");
    let lost = cluster.groups[busy][0].metrics();
    assert_eq!(lost.get("xomni_backbone_epochs_lost_total"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_of_a_killed_rank_resume_on_the_other_group() {
    lose_a_rank(
        Duration::from_secs(1),
        |cluster, group| cluster.groups[group][1].process.kill(),
        |cluster, group| cluster.restart_rank(group, 1),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_of_a_stopped_rank_resume_on_the_other_group() {
    lose_a_rank(
        Duration::from_secs(3),
        |cluster, group| cluster.groups[group][1].process.signal("STOP"),
        |cluster, group| cluster.groups[group][1].process.signal("CONT"),
    )
    .await;
}
