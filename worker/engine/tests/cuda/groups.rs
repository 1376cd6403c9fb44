//! Groups of several processes, a rank each, whose GPUs exchange through NCCL: they draw what one rank draws, end when a
//! rank is lost or stands still, and form again.
//!
//! All ranks of processes have the one GPU. NCCL takes processes with other `NCCL_HOSTID`s for other machines, and reaches
//! them through sockets. Where there are several GPUs, ranks are also threads with one each, directly and through NCCL.

mod rank;

use std::{
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use xomni_engine::{
    checkpoint::Weights,
    group::{Connection, ThreadGroup},
    ops::cuda::{Cuda, Precision},
    parallel::Abort,
};

use crate::{
    backbone::{Output, Outputs, sizes, start, try_run},
    support::*,
};
use rank::{AHEAD, LIMITS, Process, arrivals, model};

/// How long a rank waits for others in a step.
const DEADLINE: Duration = Duration::from_secs(5);

/// What a single rank draws, as ranks of other processes write it.
fn alone_draws(name: &str) -> String {
    let weights = Weights::random(5, "backbone");
    let cuda = gpu(Precision::Bf16);
    let group = start(cuda, &model(name), weights, 1, LIMITS, false);
    let outputs: Outputs = try_run(&group, LIMITS, AHEAD, arrivals()).expect("one rank");
    let tokens = |output: &Output| output.tokens.len();
    assert!(outputs.values().map(tokens).sum::<usize>() > 50);
    format!("{outputs:?}")
}

/// Ranks that have loaded the model `name`.
fn ranks(name: &str, size: usize) -> Vec<Process> {
    let start = |rank| Process::start(name, rank, size);
    let mut ranks: Vec<Process> = (0..size).map(start).collect();
    for rank in &mut ranks {
        rank.hear("loaded");
    }
    ranks
}

/// Begins an epoch.
fn form(ranks: &mut [Process], epoch: u64) {
    let addresses: Vec<String> = ranks.iter_mut().map(Process::bind).collect();
    for rank in &mut *ranks {
        let seconds = DEADLINE.as_secs();
        rank.tell(&format!("join {epoch} {seconds} {}", addresses.join(",")));
    }
    for rank in ranks {
        rank.hear("joined");
    }
}

/// Has all ranks draw, and returns how many steps the first recorded for it.
fn draw(what: &str, ranks: &mut [Process], want: &str) -> usize {
    for rank in &mut *ranks {
        rank.tell("draw");
    }
    let mut recorded = vec![];
    for (number, rank) in ranks.iter_mut().enumerate() {
        let drawn = rank.hear("drew");
        let (count, drawn) = drawn.split_once(' ').expect("count and outputs");
        recorded.push(count.parse().expect("a number"));
        assert!(
            drawn == want,
            "{what}: rank {number} drew {drawn}, one alone {want}"
        );
    }
    assert!(recorded.iter().all(|count| *count == recorded[0]));
    recorded[0]
}

/// Has all ranks draw for ever, and waits until the first does so from recordings.
fn draw_on(ranks: &mut [Process]) {
    for rank in &mut *ranks {
        rank.tell("draw for ever");
    }
    for _ in 0..2 {
        ranks[0].hear("drew");
    }
}

#[test]
fn groups_of_processes_draw_what_one_rank_draws() {
    let _gpu = alone();
    for name in ["aligned", "odd"] {
        let want = alone_draws(name);
        for size in [2, 4, 8] {
            let what = format!("{name}, {size} ranks");
            let since = Instant::now();
            let mut ranks = ranks(name, size);
            form(&mut ranks, 1);
            let formed = since.elapsed();
            let recorded = draw(&what, &mut ranks, &want);
            assert!(recorded > 0, "{what}: nothing was recorded");
            println!(
                "{what}: formed in {formed:?}, drew until {:?}",
                since.elapsed()
            );
        }
    }
}

/// Ranks as threads with these GPUs draw what one rank draws, in every epoch, also after one that was ended.
fn threads_draw_what_one_rank_draws(gpus: &[Arc<Cuda>]) {
    for name in ["aligned", "odd"] {
        let want = alone_draws(name);
        let (weights, sizes) = (
            Weights::random(5, "backbone"),
            sizes(gpus.len(), LIMITS, false),
        );
        let ranks = 0..gpus.len();
        let group = ThreadGroup::start_part(gpus, &model(name), weights, &sizes, ranks);
        let group = group.expect("ranks");
        group.warm_up().expect("warm");
        for epoch in 1..=4 {
            let abort = Abort::default();
            let connections = Connection::local(gpus.len(), &abort);
            group.reset(connections).expect("connected");
            if epoch == 3 {
                let ending = thread::spawn(move || {
                    thread::sleep(Duration::from_millis(30));
                    abort.abort();
                });
                while try_run(&group, LIMITS, AHEAD, arrivals()).is_ok() {}
                ending.join().expect("no panic");
                continue;
            }
            let what = format!("{name}, {} ranks, epoch {epoch}", gpus.len());
            let drawn = try_run(&group, LIMITS, AHEAD, arrivals());
            let drawn = drawn.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(format!("{drawn:?}") == want, "{what}");
        }
        assert!(gpus.iter().all(|gpu| gpu.recorded() > 0));
    }
}

#[test]
#[ignore = "needs two GPUs"]
fn ranks_with_gpus_of_their_own_draw_what_one_rank_draws() {
    let _gpu = alone();
    let gpus: Vec<_> = (0..8)
        .map_while(|gpu| Cuda::open(gpu, Precision::Bf16).ok())
        .map(Arc::new)
        .collect();
    assert!(gpus.len() > 1, "{} GPUs", gpus.len());
    for nccl in [false, true] {
        if nccl {
            gpus.iter().for_each(|gpu| gpu.exchange_through_nccl());
        }
        for size in [2, 4, 8].into_iter().filter(|&size| size <= gpus.len()) {
            println!("{size} ranks, NCCL: {nccl}");
            threads_draw_what_one_rank_draws(&gpus[..size]);
        }
    }
}

#[test]
fn a_group_ends_with_a_rank_and_forms_again() {
    let _gpu = alone();
    let name = "aligned";
    let want = alone_draws(name);
    let mut ranks = ranks(name, 2);
    form(&mut ranks, 1);
    // A step is recorded when it comes a second time.
    let twice = |what, ranks: &mut _| draw(what, ranks, &want) + draw(what, ranks, &want);
    let recorded = twice("the first epoch", &mut ranks);
    assert_eq!(draw("the first epoch again", &mut ranks, &want), 0);
    form(&mut ranks, 2);
    let again = twice("the next epoch", &mut ranks);
    assert_eq!(again, recorded, "an epoch records its own steps");

    draw_on(&mut ranks);
    let since = Instant::now();
    ranks[1].kill();
    let reason = ranks[0].hear("failed");
    println!("killed: {reason:?} after {:?}", since.elapsed());
    assert!(since.elapsed() < DEADLINE);
    ranks[1] = Process::start(name, 1, 2);
    ranks[1].hear("loaded");
    form(&mut ranks, 3);
    assert_eq!(twice("after a death", &mut ranks), recorded);

    draw_on(&mut ranks);
    let since = Instant::now();
    ranks[1].signal("STOP");
    let reason = ranks[0].hear("failed");
    println!("stopped: {reason:?} after {:?}", since.elapsed());
    assert!(reason.contains("overdue"), "{reason}");
    assert!(since.elapsed() >= DEADLINE);
    ranks[1].signal("CONT");
    ranks[1].hear("failed");
    form(&mut ranks, 4);
    assert_eq!(twice("after a standstill", &mut ranks), recorded);
}

#[test]
fn an_epoch_that_is_ended_while_it_forms_frees_its_ranks() {
    let _gpu = alone();
    let mut ranks = ranks("odd", 2);
    let addresses: Vec<String> = ranks.iter_mut().map(Process::bind).collect();
    // Nobody comes for rank 1.
    ranks[0].tell(&format!("join 1 60 {}", addresses.join(",")));
    ranks[0].tell("abort");
    let reason = ranks[0].hear("failed");
    assert!(reason.contains("ended"), "{reason}");
}

#[test]
fn an_epoch_may_be_ended_at_any_moment() {
    let _gpu = alone();
    let name = "aligned";
    let want = alone_draws(name);
    let mut ranks = ranks(name, 2);
    // While steps run for the first time, while they are recorded, and while recordings are played.
    for epoch in 1..=30 {
        form(&mut ranks, epoch);
        for rank in &mut ranks {
            rank.tell(&format!("draw for {}", 15 * epoch));
        }
        for rank in &mut ranks {
            rank.hear("failed");
        }
    }
    form(&mut ranks, 31);
    assert!(draw("after all", &mut ranks, &want) > 0);
}

/// Not a test, but a rank of the processes of those above.
#[test]
#[ignore = "is started by the tests of groups"]
fn process() {
    rank::run(Arc::new(gpu(Precision::Bf16)));
}

/// This program, as a rank.
fn command() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("path of this test"));
    command.args(["--exact", "groups::process", "--ignored", "--nocapture"]);
    command
}
