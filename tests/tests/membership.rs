//! Workers and epochs in a real etcd: leases, outages, compactions, races.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch::Receiver;
use tokio::time::timeout;
use xomni_cluster::record::{Load, Role, WorkerRecord, WorkerState};
use xomni_cluster::{Cluster, Membership, Standing};
use xomni_tests::etcd::Etcd;
use xomni_tests::relay::Relay;

/// A condition that is not met within this is never met.
const PATIENCE: Duration = Duration::from_secs(60);
/// The shortest lease of etcd.
const SHORT_LEASE: Duration = Duration::from_secs(2);

fn connect(etcd: &Etcd) -> Cluster {
    Cluster::connect(&etcd.endpoints(), "test").expect("cluster")
}

fn worker(id: &str) -> WorkerRecord {
    WorkerRecord {
        id: id.into(),
        address: "127.0.0.1:1".into(),
        protocol_version: 1,
        model: "m".into(),
        fingerprint: "f".into(),
        state: WorkerState::Ready,
        role: Role::Decoder,
        load: Load::default(),
    }
}

fn with_queue(id: &str, queued: u64) -> WorkerRecord {
    WorkerRecord {
        load: Load {
            queued,
            ..Load::default()
        },
        ..worker(id)
    }
}

fn ids(membership: &Membership) -> Vec<&str> {
    membership
        .workers()
        .map(|worker| worker.id.as_str())
        .collect()
}

async fn until(
    workers: &mut Receiver<Arc<Membership>>,
    condition: impl FnMut(&Arc<Membership>) -> bool,
) -> Arc<Membership> {
    let met = timeout(PATIENCE, workers.wait_for(condition)).await;
    let membership = met.map(|seen| seen.expect("watch goes on").clone());
    membership.unwrap_or_else(|_| panic!("condition not met: {:?}", workers.borrow()))
}

async fn until_ids(workers: &mut Receiver<Arc<Membership>>, expected: &[&str]) {
    until(workers, |seen| seen.is_current() && ids(seen) == expected).await;
}

async fn client(etcd: &Etcd) -> etcd_client::Client {
    etcd_client::Client::connect(etcd.endpoints(), None)
        .await
        .expect("client")
}

#[tokio::test]
async fn a_worker_is_seen_while_it_is_registered() {
    let etcd = Etcd::new();
    let (here, there) = (connect(&etcd), connect(&etcd));
    let mut workers = there.watch_workers();
    until_ids(&mut workers, &[]).await;

    let a = here.register(worker("a"));
    let b = here.register(worker("b"));
    until_ids(&mut workers, &["a", "b"]).await;

    for queued in 1..=100 {
        a.update(with_queue("a", queued));
    }
    let seen = until(&mut workers, |seen| {
        seen.get("a").is_some_and(|a| a.load.queued == 100)
    });
    assert_eq!(seen.await.get("b"), Some(&worker("b")));

    a.withdraw().await;
    until_ids(&mut workers, &["b"]).await;
    assert_eq!(workers.borrow().standing("a"), Standing::Gone);
    assert_eq!(
        workers.borrow().standing("b"),
        Standing::Registered(Arc::new(worker("b")))
    );
    drop(b);
}

#[tokio::test]
async fn a_worker_that_stops_without_a_word_goes_with_its_lease() {
    let etcd = Etcd::new();
    let mut workers = connect(&etcd).watch_workers();
    assert!(
        workers.changed().await.is_err(),
        "a watch ends with its cluster"
    );

    let cluster = connect(&etcd);
    let mut workers = cluster.watch_workers();
    let dying = connect(&etcd)
        .with_lease(SHORT_LEASE)
        .register(worker("dying"));
    let staying = connect(&etcd)
        .with_lease(SHORT_LEASE)
        .register(worker("staying"));
    until_ids(&mut workers, &["dying", "staying"]).await;
    drop(dying);
    until_ids(&mut workers, &["staying"]).await;
    drop(staying);
}

#[tokio::test]
async fn a_lost_lease_is_replaced() {
    let etcd = Etcd::new();
    let cluster = connect(&etcd).with_lease(SHORT_LEASE);
    let mut workers = cluster.watch_workers();
    let registration = cluster.register(worker("a"));
    until_ids(&mut workers, &["a"]).await;

    let mut client = client(&etcd).await;
    let leases = client.leases().await.expect("leases");
    for lease in leases.leases() {
        client.lease_revoke(lease.id()).await.expect("revoked");
    }
    until_ids(&mut workers, &[]).await;
    until_ids(&mut workers, &["a"]).await;
    registration.withdraw().await;
}

#[tokio::test]
async fn an_outage_of_etcd_removes_nobody() {
    let mut etcd = Etcd::new();
    let cluster = connect(&etcd);
    let mut workers = cluster.watch_workers();
    let staying = cluster.register(worker("staying"));
    let dying = connect(&etcd)
        .with_lease(SHORT_LEASE)
        .register(worker("dying"));
    until_ids(&mut workers, &["dying", "staying"]).await;

    etcd.stop();
    let seen = until(&mut workers, |seen| !seen.is_current()).await;
    assert_eq!(ids(&seen), ["dying", "staying"]);
    assert!(matches!(seen.standing("dying"), Standing::Unknown(Some(_))));
    assert_eq!(seen.standing("other"), Standing::Unknown(None));
    drop(dying);
    staying.update(with_queue("staying", 7));
    let late = cluster.register(worker("late"));
    assert!(
        !workers.has_changed().expect("watch goes on"),
        "nothing is known of them yet"
    );

    etcd.start();
    until_ids(&mut workers, &["late", "staying"]).await;
    until(&mut workers, |seen| {
        seen.get("staying").is_some_and(|s| s.load.queued == 7)
    })
    .await;
    staying.withdraw().await;
    late.withdraw().await;
    until_ids(&mut workers, &[]).await;
}

#[tokio::test]
async fn a_registration_outlives_etcds_data() {
    let mut etcd = Etcd::new();
    let cluster = connect(&etcd);
    let mut workers = cluster.watch_workers();
    let kept = cluster.register(worker("kept"));
    let dropped = cluster.register(worker("dropped"));
    until_ids(&mut workers, &["dropped", "kept"]).await;
    for queued in 0..20 {
        kept.update(with_queue("kept", queued));
        until(&mut workers, |seen| {
            seen.get("kept").is_some_and(|k| k.load.queued == queued)
        })
        .await;
    }

    etcd.stop();
    until(&mut workers, |seen| !seen.is_current()).await;
    drop(dropped);
    etcd.erase();
    etcd.start();
    until_ids(&mut workers, &["kept"]).await;
    kept.withdraw().await;
}

#[tokio::test]
async fn a_compaction_during_an_outage_leads_to_a_new_list() {
    let mut etcd = Etcd::new();
    let relay = Relay::start(&etcd.endpoints()[0]).await;
    let near = connect(&etcd);
    let far = Cluster::connect(&[relay.address()], "test").expect("cluster");
    let mut workers = far.watch_workers();
    let a = near.register(worker("a"));
    let b = near.register(worker("b"));
    until_ids(&mut workers, &["a", "b"]).await;

    relay.cut();
    until(&mut workers, |seen| !seen.is_current()).await;
    a.withdraw().await;
    let c = near.register(worker("c"));
    until_ids(&mut near.watch_workers(), &["b", "c"]).await;
    let mut client = client(&etcd).await;
    let newest = client
        .get("/", None)
        .await
        .expect("read")
        .header()
        .expect("header")
        .revision();
    client.compact(newest, None).await.expect("compacted");
    assert_eq!(ids(&workers.borrow()), ["a", "b"]);

    relay.join();
    until_ids(&mut workers, &["b", "c"]).await;
    b.update(with_queue("b", 3));
    until(&mut workers, |seen| {
        seen.get("b").is_some_and(|b| b.load.queued == 3)
    })
    .await;
    drop((b, c));
    etcd.stop();
}

#[tokio::test]
async fn a_member_that_is_down_is_passed_over() {
    let etcd = Etcd::new();
    let down = "127.0.0.1:1".to_string();
    let endpoints = [vec![down.clone()], etcd.endpoints(), vec![down]].concat();
    let cluster = Cluster::connect(&endpoints, "test").expect("cluster");
    let mut workers = cluster.watch_workers();
    let registration = cluster.register(worker("a"));
    until_ids(&mut workers, &["a"]).await;
    for number in 1..=20 {
        let epoch = cluster.next_epoch("g", "l", "h:1", 1).await.expect("epoch");
        assert_eq!(epoch.number, number);
    }
    registration.withdraw().await;
    until_ids(&mut workers, &[]).await;
}

#[tokio::test]
async fn unreadable_and_newer_records_harm_nobody() {
    let etcd = Etcd::new();
    let cluster = connect(&etcd);
    let mut workers = cluster.watch_workers();
    let registration = cluster.register(worker("a"));
    let mut client = client(&etcd).await;
    let mut newer = serde_json::to_value(worker("newer")).expect("record");
    newer["colour"] = "blue".into();
    let records = [
        ("broken", b"{".to_vec()),
        ("binary", vec![0xff, 0xfe]),
        ("other", serde_json::to_vec(&worker("a")).expect("record")),
        ("newer", newer.to_string().into_bytes()),
    ];
    for (id, value) in records {
        client
            .put(format!("/xomni/test/workers/{id}"), value, None)
            .await
            .expect("written");
    }
    until_ids(&mut workers, &["a", "newer"]).await;
    until_ids(&mut cluster.watch_workers(), &["a", "newer"]).await;
    registration.withdraw().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_has_one_leader() {
    const LEADERS: usize = 6;
    const EPOCHS: usize = 10;
    let etcd = Etcd::new();
    let watcher = connect(&etcd);
    let mut epochs = watcher.watch_epoch("g");
    let leaders = (0..LEADERS).map(|leader| {
        let cluster = connect(&etcd);
        tokio::spawn(async move {
            let leader = format!("leader-{leader}");
            let mut taken = Vec::new();
            while taken.len() < EPOCHS {
                match cluster.next_epoch("g", &leader, "127.0.0.1:1", 2).await {
                    Ok(epoch) => taken.push(epoch),
                    Err(error) => assert!(error.retryable(), "{error}"),
                }
            }
            taken
        })
    });
    let mut numbers = BTreeSet::new();
    let mut secrets = BTreeSet::new();
    for (leader, task) in leaders.collect::<Vec<_>>().into_iter().enumerate() {
        let taken = timeout(PATIENCE, task)
            .await
            .expect("in time")
            .expect("leader");
        assert!(
            taken.is_sorted_by(|one, next| one.number < next.number),
            "epochs rise"
        );
        for epoch in taken {
            assert_eq!(epoch.leader, format!("leader-{leader}"));
            assert!(
                numbers.insert(epoch.number),
                "epoch {} has two leaders",
                epoch.number
            );
            assert!(secrets.insert(epoch.secret), "a secret is used twice");
        }
    }
    let last = (LEADERS * EPOCHS) as u64;
    assert_eq!(numbers, (1..=last).collect());
    let seen = epochs.wait_for(|epoch| epoch.as_ref().is_some_and(|epoch| epoch.number == last));
    timeout(PATIENCE, seen)
        .await
        .expect("in time")
        .expect("watch goes on");
    assert_eq!(
        watcher
            .next_epoch("other", "l", "h:1", 1)
            .await
            .expect("epoch")
            .number,
        1
    );
}

#[tokio::test]
async fn an_epoch_survives_an_outage_and_is_refused_over_damage() {
    let mut etcd = Etcd::new();
    let cluster = connect(&etcd);
    let mut epochs = cluster.watch_epoch("g");
    let first = cluster.next_epoch("g", "l", "h:1", 2).await.expect("epoch");
    let seen = epochs.wait_for(|epoch| epoch.as_ref() == Some(&first));
    timeout(PATIENCE, seen)
        .await
        .expect("in time")
        .expect("watch goes on");

    etcd.stop();
    let error = cluster
        .next_epoch("g", "l", "h:1", 2)
        .await
        .expect_err("etcd is away");
    assert!(error.retryable(), "{error}");
    assert_eq!(*epochs.borrow(), Some(first));
    etcd.start();
    assert_eq!(
        cluster
            .next_epoch("g", "l", "h:1", 2)
            .await
            .expect("epoch")
            .number,
        2
    );

    client(&etcd)
        .await
        .put("/xomni/test/groups/g/epoch", "?", None)
        .await
        .expect("written");
    let error = cluster
        .next_epoch("g", "l", "h:1", 2)
        .await
        .expect_err("damaged");
    assert!(!error.retryable(), "{error}");
}
