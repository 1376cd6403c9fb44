//! A rank in a process of its own, and its end in the test's process. They talk in lines, over standard input and output.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use xomni_engine::{
    Result,
    checkpoint::{BackboneConfig, Weights},
    group::{Connection, GroupConfig, ThreadGroup},
    ops::cuda::Cuda,
    parallel::{Abort, NetConfig},
    schedule::{Request, SchedulerConfig},
};

use crate::backbone::{ROOMY, config, odd, request, try_run};

pub const LIMITS: SchedulerConfig = SchedulerConfig {
    max_rows: 24,
    max_sequences: 8,
    ..ROOMY
};
/// Steps planned before the first of them ends.
pub const AHEAD: usize = 2;
/// Within this, a rank answers or something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of a rank that are not the test harness's.
const MARK: &str = "rank: ";
const MODEL: &str = "XOMNI_TEST_MODEL";
const RANK: &str = "XOMNI_TEST_RANK";
const RANKS: &str = "XOMNI_TEST_RANKS";

pub fn model(name: &str) -> BackboneConfig {
    match name {
        "odd" => odd(),
        _ => config(),
    }
}

/// Images, guided images and texts that come while others run.
pub fn arrivals() -> Vec<(usize, Request)> {
    let request = |id: u64| request(id, 1 + id as usize * 29 % 60, 8 + id as usize % 5, id);
    (0..6).map(|id| (id as usize / 2, request(id))).collect()
}

/// The test's end of a rank. It is killed when this is dropped.
pub struct Process {
    child: Child,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Process {
    pub fn start(name: &str, rank: usize, size: usize) -> Self {
        let mut child = super::command()
            .envs([(MODEL, name), ("NCCL_NVLS_ENABLE", "0")])
            // Another machine for NCCL, that is reached through the loopback.
            .env("NCCL_HOSTID", format!("{rank}"))
            .envs([("NCCL_SOCKET_IFNAME", "lo"), ("NCCL_NET", "Socket")])
            .envs([(RANK, rank.to_string()), (RANKS, size.to_string())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a rank");
        let input = child.stdin.take().expect("its input");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let (sender, lines) = mpsc::channel();
        // Ends with the process.
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The harness does not end the line of a test's name.
                if let Some((_, line)) = line.split_once(MARK)
                    && sender.send(line.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self {
            child,
            input,
            lines,
        }
    }

    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the rank lives");
    }

    /// Waits for a line that begins with `word` and returns the rest of it.
    pub fn hear(&mut self, word: &str) -> String {
        let overdue = Instant::now() + PATIENCE;
        loop {
            let left = overdue.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|error| panic!("waited for {word:?}: {error}"));
            match line.strip_prefix(word) {
                Some(rest) => return rest.trim_start().to_owned(),
                None if line.starts_with("failed") => panic!("waited for {word:?}, heard {line}"),
                None => {}
            }
        }
    }

    /// Address of a new listener.
    pub fn bind(&mut self) -> String {
        self.tell("bind");
        self.hear("bound")
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status();
        assert!(status.expect("kill").success());
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn say(line: &str) {
    println!("{MARK}{line}");
}

fn variable(name: &str) -> String {
    env::var(name).expect("started by a test of groups")
}

fn number(name: &str) -> usize {
    variable(name).parse().expect("a number")
}

/// The life of a rank: does what its input says, until that ends.
pub fn run(cuda: Arc<Cuda>) {
    let (rank, size) = (number(RANK), number(RANKS));
    let group = GroupConfig {
        ranks: size,
        max_rows: LIMITS.max_rows,
        blocks: LIMITS.blocks,
        block_size: LIMITS.block_size,
        slots: LIMITS.max_sequences,
        suppressed: vec![1, 2],
        keep_logits: false,
    };
    let weights = Weights::random(5, "backbone");
    let config = model(&variable(MODEL));
    let devices = [cuda.clone()];
    let ranks = ThreadGroup::start_part(&devices, &config, weights, &group, rank..rank + 1);
    let ranks = ranks.expect("loaded");
    ranks.warm_up().expect("warm");
    say("loaded");
    let mut listener = None;
    let mut abort = Abort::default();
    thread::scope(|scope| {
        for line in std::io::stdin().lines() {
            let line = line.expect("input");
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["bind"] => {
                    let bound = TcpListener::bind("127.0.0.1:0").expect("a free port");
                    say(&format!("bound {}", bound.local_addr().expect("bound")));
                    listener = Some(bound);
                }
                ["join", epoch, deadline, addresses] => {
                    abort = Abort::default();
                    let connection = Connection::Net {
                        listener: listener.take().expect("bound"),
                        config: NetConfig {
                            epoch: epoch.parse().expect("a number"),
                            secret: b"secret".as_slice().into(),
                            rank,
                            addresses: addresses.split(',').map(str::to_owned).collect(),
                            deadline: Duration::from_secs(deadline.parse().expect("a number")),
                        },
                        abort: abort.clone(),
                    };
                    // Meanwhile the epoch may be ended.
                    let ranks = &ranks;
                    scope.spawn(move || answer("joined", &ranks.reset(vec![connection])));
                }
                ["abort"] => abort.abort(),
                ["draw"] => drop(draw(&cuda, &ranks)),
                ["draw", "for", "ever"] => while draw(&cuda, &ranks).is_ok() {},
                ["draw", "for", millis] => {
                    let (abort, millis) = (abort.clone(), millis.parse().expect("a number"));
                    scope.spawn(move || {
                        thread::sleep(Duration::from_millis(millis));
                        abort.abort();
                    });
                    while draw(&cuda, &ranks).is_ok() {}
                }
                _ => panic!("{line:?}"),
            }
        }
    });
}

fn answer(word: &str, result: &Result<()>) {
    match result {
        Ok(()) => say(word),
        Err(error) => say(&format!("failed {error}")),
    }
}

/// Draws, and says what, and how many steps were recorded for it.
fn draw(cuda: &Cuda, ranks: &ThreadGroup) -> Result<()> {
    let before = cuda.recorded();
    let outputs = try_run(ranks, LIMITS, AHEAD, arrivals());
    let outputs = outputs.inspect_err(|error| say(&format!("failed {error}")))?;
    let recorded = cuda.recorded() - before;
    say(&format!("drew {recorded} {outputs:?}"));
    Ok(())
}
