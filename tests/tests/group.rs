//! A backbone group as processes: it gives the tokens of one process, is lost as a whole when a
//! rank is killed or stopped, and forms again when the rank is back.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};
use tonic::transport::Endpoint;
use xomni_cluster::{
    Cluster, Membership,
    record::{Role, WorkerRecord, WorkerState},
};
use xomni_engine::{
    Error,
    sampling::SamplingParams,
    schedule::{Mode, OutputSpec},
};
use xomni_tests::{etcd::Etcd, golden::Fixture, process::Process};
use xomni_worker::{
    api::{Backbone, GenerateJob},
    client::{Calls, RemoteBackbone, Target},
};

/// Within this, anything that is waited for has happened or never will.
const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    etcd: Etcd,
    /// Ends the watch with the scene.
    _cluster: Cluster,
    members: watch::Receiver<Arc<Membership>>,
    model: PathBuf,
    logs: tempfile::TempDir,
}

/// What the record of a group's leader says.
#[derive(Debug, Clone)]
struct Leading {
    record: WorkerRecord,
    epoch: u64,
}

impl Scene {
    fn new() -> Self {
        let etcd = Etcd::new();
        let cluster = Cluster::connect(&etcd.endpoints(), "test").expect("endpoints");
        let members = cluster.watch_workers();
        Self {
            etcd,
            _cluster: cluster,
            members,
            model: Fixture::open().x_omni(),
            logs: tempfile::tempdir().expect("folder"),
        }
    }

    /// A process with `ranks` ranks from `first` on of a group of `size`, which is ready.
    fn worker(&self, group: &str, first: usize, ranks: usize, size: usize) -> Process {
        let endpoints = self.etcd.endpoints().join(",");
        let (first, ranks, size) = (first.to_string(), ranks.to_string(), size.to_string());
        let model = self.model.to_str().expect("UTF-8");
        let common = ["--model", model, "--etcd", &endpoints, "--cluster", "test"];
        let place = ["--group", group, "--first-rank", &first, "--ranks", &ranks];
        let limits = ["--tp", &size, "--kv-memory", "64", "--drain", "120"];
        let arguments = [
            &["backbone", "--die-with-parent"],
            &common[..],
            &place,
            &limits,
        ]
        .concat();
        let mut process = Process::start(
            &format!("{group} {first}"),
            "xomni-worker",
            &arguments,
            &[("RAYON_NUM_THREADS", "2")],
            self.logs.path(),
        );
        process.wait_for_line("backbone ready at ");
        process
    }

    /// Waits until the record of a group's leader is as wanted.
    async fn leading(&mut self, group: &str, wanted: impl Fn(&Leading) -> bool) -> Leading {
        let find = |members: &Membership| {
            let leading = members.workers().filter_map(|record| match &record.role {
                Role::Backbone {
                    group: of,
                    first_rank: 0,
                    epoch,
                    ..
                } if of == group => Some(Leading {
                    record: record.clone(),
                    epoch: *epoch,
                }),
                _ => None,
            });
            leading.into_iter().find(|leading| wanted(leading))
        };
        let found = self.members.wait_for(|members| find(members).is_some());
        let members = timeout(PATIENCE, found).await.expect("in time");
        find(&members.expect("watched")).expect("found")
    }

    /// Waits until the record of a process of a group that follows is as wanted.
    async fn follower(&mut self, group: &str, wanted: impl Fn(&WorkerRecord) -> bool) {
        let follows = |record: &WorkerRecord| match &record.role {
            Role::Backbone {
                group: of,
                first_rank,
                ..
            } => of == group && *first_rank > 0,
            Role::Decoder => false,
        };
        let found = self.members.wait_for(|members| {
            let mut followers = members.workers().filter(|record| follows(record));
            followers.any(&wanted)
        });
        drop(
            timeout(PATIENCE, found)
                .await
                .expect("in time")
                .expect("watched"),
        );
    }

    /// Waits until a group serves an epoch after `epoch`.
    async fn ready(&mut self, group: &str, epoch: u64) -> Leading {
        self.leading(group, |leading| {
            leading.record.state == WorkerState::Ready && leading.epoch > epoch
        })
        .await
    }
}

fn connect(leading: &Leading) -> RemoteBackbone {
    let address = format!("http://{}", leading.record.address);
    let channel = Endpoint::from_shared(address).expect("address");
    let target = Target {
        model: leading.record.model.clone(),
        fingerprint: leading.record.fingerprint.clone(),
        weights_version: String::new(),
        epoch: 0,
    };
    RemoteBackbone::new(channel.connect_lazy(), Calls::new(target))
}

fn job(seed: u64, tokens: usize) -> GenerateJob {
    GenerateJob {
        request_id: format!("test-{seed}"),
        attempt: 0,
        priority: 0,
        mode: Mode::Image,
        prompt: (0..30).map(|i| (i * 37 + seed as u32) % 1000).collect(),
        negative_prompt: Some(vec![3, 1, 4, 1, 5]),
        sampling: SamplingParams {
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.03,
            guidance_scale: 2.0,
        },
        seed,
        outputs: (0..2)
            .map(|image_index| OutputSpec {
                image_index,
                forced: vec![],
            })
            .collect(),
        max_tokens: tokens,
        stop_ids: vec![],
        deadline: None,
        log_probs: true,
    }
}

/// Tokens of each output, and the bits of their log-probabilities, until the job ends.
async fn draw(
    backbone: &RemoteBackbone,
    job: GenerateJob,
) -> (Vec<Vec<(u32, u32)>>, Result<(), Error>) {
    let mut outputs = vec![vec![]; job.outputs.len()];
    let mut stream = match backbone.generate(job).await {
        Ok(stream) => stream,
        Err(error) => return (outputs, Err(error)),
    };
    loop {
        match stream.next().await {
            Ok(Some(frame)) => {
                let bits = frame.log_probs.iter().map(|p| p.to_bits());
                outputs[frame.output].extend(frame.tokens.into_iter().zip(bits));
            }
            Ok(None) => return (outputs, Ok(())),
            Err(error) => return (outputs, Err(error)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_a_group_draw_the_tokens_of_one() {
    let mut scene = Scene::new();
    let _alone = scene.worker("alone", 0, 1, 1);
    let _low = scene.worker("parted", 0, 1, 4);
    let _middle = scene.worker("parted", 1, 2, 4);
    let _high = scene.worker("parted", 3, 1, 4);
    let alone = scene.ready("alone", 0).await;
    let parted = scene.ready("parted", 0).await;
    assert_eq!(alone.record.fingerprint, parted.record.fingerprint);
    let (alone, parted) = (connect(&alone), connect(&parted));
    let jobs = [job(1, 40), job(2, 25), job(3, 60)];
    let mut expected = vec![];
    for job in &jobs {
        let (tokens, ended) = draw(&alone, job.clone()).await;
        ended.expect("drawn");
        expected.push(tokens);
    }
    let together = jobs.map(|job| {
        let parted = parted.clone();
        tokio::spawn(async move { draw(&parted, job).await })
    });
    for (task, expected) in together.into_iter().zip(expected) {
        let (tokens, ended) = task.await.expect("no panic");
        ended.expect("drawn");
        assert_eq!(tokens, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_rank_ends_its_group_until_it_is_back() {
    let mut scene = Scene::new();
    let _leader = scene.worker("g", 0, 1, 2);
    let follower = scene.worker("g", 1, 1, 2);
    let first = scene.ready("g", 0).await;
    let backbone = connect(&first);
    let running = tokio::spawn({
        let backbone = backbone.clone();
        async move { draw(&backbone, job(1, 7000)).await }
    });
    let busy = |leading: &Leading| leading.record.load.running == 1;
    scene.leading("g", busy).await;

    let killed = Instant::now();
    follower.signal("KILL");
    let (_, ended) = timeout(PATIENCE, running)
        .await
        .expect("in time")
        .expect("no panic");
    let failed_after = killed.elapsed();
    let error = ended.expect_err("lost");
    assert!(error.retryable(), "{error}");
    assert!(failed_after < Duration::from_secs(1), "{failed_after:?}");
    let lost = |leading: &Leading| leading.record.state == WorkerState::Forming;
    scene.leading("g", lost).await;
    assert!(
        killed.elapsed() < Duration::from_secs(2),
        "{:?}",
        killed.elapsed()
    );
    let (_, refused) = draw(&backbone, job(1, 5)).await;
    assert!(refused.expect_err("no group").retryable());

    let _follower = scene.worker("g", 1, 1, 2);
    scene.ready("g", first.epoch).await;
    let (_, ended) = draw(&backbone, job(1, 30)).await;
    ended.expect("drawn");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_ends_its_group_until_another_leads() {
    let mut scene = Scene::new();
    let leader = scene.worker("g", 0, 1, 2);
    let _follower = scene.worker("g", 1, 1, 2);
    let first = scene.ready("g", 0).await;
    leader.signal("KILL");
    let _leader = scene.worker("g", 0, 1, 2);
    let again = scene.ready("g", first.epoch).await;
    let (_, ended) = draw(&connect(&again), job(1, 30)).await;
    ended.expect("drawn");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_rank_is_overdue() {
    let mut scene = Scene::new();
    let leader = scene.worker("g", 0, 1, 2);
    let follower = scene.worker("g", 1, 1, 2);
    let first = scene.ready("g", 0).await;
    let stopped = Instant::now();
    follower.signal("STOP");
    let lost = |leading: &Leading| leading.record.state == WorkerState::Forming;
    scene.leading("g", lost).await;
    assert!(
        stopped.elapsed() < Duration::from_secs(3),
        "{:?}",
        stopped.elapsed()
    );
    follower.signal("CONT");
    let again = scene.ready("g", first.epoch).await;
    let (_, ended) = draw(&connect(&again), job(1, 30)).await;
    ended.expect("drawn");

    // Its followers leave a leader that is stopped, and it sees that when it goes on.
    leader.signal("STOP");
    let silent = |record: &WorkerRecord| record.state == WorkerState::Forming;
    scene.follower("g", silent).await;
    leader.signal("CONT");
    scene.ready("g", again.epoch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_finishes_its_work_before_a_process_of_it_stops() {
    let mut scene = Scene::new();
    let mut leader = scene.worker("g", 0, 1, 2);
    let mut follower = scene.worker("g", 1, 1, 2);
    for (stops, group) in [(&mut follower, 1), (&mut leader, 0)] {
        let _back = (group == 0).then(|| scene.worker("g", 1, 1, 2));
        let ready = scene.ready("g", 0).await;
        let backbone = connect(&ready);
        let running = tokio::spawn({
            let backbone = backbone.clone();
            async move { draw(&backbone, job(1, 1500)).await }
        });
        let busy = |leading: &Leading| leading.record.load.running == 1;
        scene.leading("g", busy).await;
        stops.signal("TERM");
        let draining = |leading: &Leading| leading.record.state == WorkerState::Draining;
        scene.leading("g", draining).await;
        let (_, refused) = draw(&backbone, job(2, 5)).await;
        assert!(refused.expect_err("draining").retryable());
        let (tokens, ended) = running.await.expect("no panic");
        ended.expect("finished");
        assert!(tokens.iter().all(|tokens| tokens.len() == 1500));
        assert!(stops.wait().success(), "ended well");
    }
}
