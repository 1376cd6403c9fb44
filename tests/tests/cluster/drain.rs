//! Processes that are told to end finish what they have.

use tonic::Code;
use xomni_tests::{
    cluster::{Cluster, Shape, eventually, in_time},
    drawing::{Drawing, alone},
    process::PATIENCE,
};

use crate::{long, short};

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_every_kind_of_process_loses_nothing() {
    let (of_long, of_short) = (alone(&long()).await, alone(&short()).await);
    let mut cluster = Cluster::start(Shape::new(2, 2, 2)).await;
    let mut drawing = Drawing::begin(&cluster.channel, long())
        .await
        .expect("taken");
    drawing.tokens(1).await.expect("draws");
    let group = cluster.busy_group().await;
    let decoder = eventually(PATIENCE, "a busy decoder", async || {
        let jobs = cluster
            .decoders
            .iter()
            .map(|one| one.metrics().get("xomni_decoder_jobs"));
        let jobs: Vec<_> = jobs.collect();
        jobs.iter().position(|jobs| *jobs > 0.0).ok_or(jobs)
    })
    .await;
    let develops = |status: &xomni_proto::cluster::ClusterStatus, address: &str| {
        status
            .decoders
            .iter()
            .any(|one| one.address == address && one.takes_work)
    };

    cluster.groups[group][0].process.signal("TERM");
    cluster.decoders[decoder].process.signal("TERM");
    let address = cluster.decoders[decoder].address.clone();
    cluster
        .until("both to leave routing", |status| {
            !status.groups[group].takes_work && !develops(status, &address)
        })
        .await;
    let picture = in_time("a new picture", cluster.draw(short())).await;
    assert!(picture.expect("drawn by the others") == of_short);

    cluster.coordinator.process.signal("TERM");
    let refused = eventually(PATIENCE, "a refusal", async || {
        match Drawing::begin(&cluster.channel, short()).await {
            Err(status) => Ok(status),
            // It was taken before the signal was, and must not outlast what is in flight.
            Ok(taken) => Err(taken),
        }
    })
    .await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    let retries = |stage: &str| {
        let sample = format!("xomni_retries_total{{stage=\"{stage}\"}}");
        cluster.coordinator.metrics().get(&sample)
    };
    let retries = [retries("backbone"), retries("decoder")];
    let pictures = in_time("the pictures in flight", drawing.pictures()).await;
    assert!(pictures.expect("finished") == of_long);
    assert_eq!(retries, [0.0, 0.0], "nothing moved");
    for member in [
        &mut cluster.groups[group][0],
        &mut cluster.decoders[decoder],
        &mut cluster.coordinator,
    ] {
        let ended = member.process.wait();
        assert!(ended.success(), "{ended:?}\n{}", member.process.output());
    }
}
