//! Ranks on threads of this process: all of a group, or the part that this process hosts.

use std::{
    fmt,
    net::TcpListener,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::rank::{Rank, StepOutput};
use crate::{
    Error, Result,
    checkpoint::{BackboneConfig, Weights},
    model::backbone::Backbone,
    ops::TransformerOps,
    parallel::{
        Abort, Collective, LocalCollective, Meeting, NetCollective, NetConfig, Shard,
        collective::{Alone, Unconnected},
        local, local_group,
    },
    sampling::SamplingParams,
    schedule::{Admission, DrawSetup, Mode, Row, Sample, Step, TokenSource},
};

/// How often a step that runs alone is looked at.
const POLL: Duration = Duration::from_micros(50);
/// A step that runs for so long is waited for.
const LONG: Duration = Duration::from_millis(100);

/// Sizes of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupConfig {
    /// Tensor-parallel degree: 1, 2, 4 or 8.
    pub ranks: usize,
    /// The most rows of a step.
    pub max_rows: usize,
    /// K/V blocks.
    pub blocks: usize,
    /// Positions a block.
    pub block_size: usize,
    /// Sequences at a time; their slots are below it.
    pub slots: usize,
    /// Control tokens that text never draws.
    pub suppressed: Vec<u32>,
    /// Whether [`StepOutput::logits`] is filled.
    pub keep_logits: bool,
}

/// How a rank reaches the others in an epoch.
#[derive(Debug)]
pub enum Connection {
    /// All ranks are threads of this process.
    Local {
        /// Its end of the group.
        collective: LocalCollective,
        /// Ends the epoch from another thread.
        abort: Abort,
    },
    /// Every other rank is taken to have what this one has: for a first step that nobody reads.
    Alone,
    /// Ranks of several processes.
    Net {
        /// Bound to the rank's address.
        listener: TcpListener,
        /// The rank's place in the epoch.
        config: NetConfig,
        /// Ends the epoch from another thread.
        abort: Abort,
    },
}

impl Connection {
    /// Connections of all `size` ranks, threads of this process.
    pub fn local(size: usize, abort: &Abort) -> Vec<Self> {
        let connection = |collective| Self::Local {
            collective,
            abort: abort.clone(),
        };
        local_group(size).into_iter().map(connection).collect()
    }

    /// Connects rank `number`, which has left the epoch before. Where ranks share no device, devices may
    /// exchange on their own.
    fn open<O: TransformerOps>(
        self,
        rank: &Rank<O>,
        number: usize,
        shared: bool,
    ) -> Result<Box<dyn Collective<O>>> {
        let (host, deadline, abort): (Box<dyn Collective<O>>, _, _) = match self {
            Self::Alone => return Ok(Box::new(Alone(rank.group_size()))),
            Self::Local { collective, abort } => (Box::new(collective), local::DEADLINE, abort),
            Self::Net {
                listener,
                config,
                abort,
            } => {
                let net = NetCollective::connect(&listener, &config, &abort)?;
                (Box::new(net), config.deadline, abort)
            }
        };
        if shared || rank.group_size() == 1 {
            return Ok(host);
        }
        rank.ops().exchange(Meeting {
            rank: number,
            host,
            deadline,
            abort,
        })
    }
}

enum Command {
    Reset(Connection),
    Run(Arc<Step>),
}

enum Report {
    Reset(Result<()>),
    Ran(Result<StepOutput>),
}

/// Some ranks of a group, each on a thread of its own. They keep their weights from one epoch to
/// the next; what one epoch knows of sequences is gone in the next. Dropping it ends the threads.
///
/// Steps may be submitted ahead of those collected, also by another thread than collects them.
pub struct ThreadGroup {
    ranks: Range<usize>,
    commands: Mutex<Vec<mpsc::Sender<Command>>>,
    reports: Mutex<Vec<mpsc::Receiver<Report>>>,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for ThreadGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranks, .. } = self;
        f.debug_struct("ThreadGroup")
            .field("ranks", ranks)
            .finish_non_exhaustive()
    }
}

impl ThreadGroup {
    /// All ranks of a group on one device, ready to run steps.
    ///
    /// # Errors
    /// As [`ThreadGroup::start_part`].
    pub fn start<O: TransformerOps>(
        ops: &Arc<O>,
        config: &BackboneConfig,
        weights: Weights,
        group: &GroupConfig,
    ) -> Result<Self> {
        let devices = std::slice::from_ref(ops);
        let ranks = Self::start_part(devices, config, weights, group, 0..group.ranks)?;
        ranks.reset_local()?;
        Ok(ranks)
    }

    /// Loads the parts of `weights` that `ranks` hold (and refuses tensors that no part knows), then
    /// starts the threads. They run no step before the first [`ThreadGroup::reset`]. `devices` are one
    /// for each rank, in order, or one for all of them.
    ///
    /// # Errors
    /// A degree that cannot work, or whatever loading says.
    pub fn start_part<O: TransformerOps>(
        devices: &[Arc<O>],
        config: &BackboneConfig,
        mut weights: Weights,
        group: &GroupConfig,
        ranks: Range<usize>,
    ) -> Result<Self> {
        if ranks.is_empty() || ranks.end > group.ranks {
            return Err(Error::Unsupported {
                what: format!("ranks {ranks:?}"),
                reason: format!("the group has ranks 0..{}", group.ranks),
            });
        }
        if ![1, ranks.len()].contains(&devices.len()) {
            return Err(Error::Unsupported {
                what: format!("{} devices", devices.len()),
                reason: format!("ranks {ranks:?} need one each, or one for all"),
            });
        }
        let mut loaded = Vec::new();
        for (index, ops) in ranks.clone().zip(devices.iter().cycle()) {
            let shard = Shard::new(index, group.ranks)?;
            let (ops, unconnected) = (ops.clone(), Box::new(Unconnected(group.ranks)));
            let rows = group.max_rows;
            let backbone = Backbone::load(ops, shard, unconnected, config, &mut weights, rows)?;
            let kv = backbone.kv_cache(group.blocks, group.block_size)?;
            let rows = backbone.rows(group.slots, group.block_size)?;
            let (suppressed, keep_logits) = (&group.suppressed, group.keep_logits);
            let rank = Rank::new(backbone, kv, rows, suppressed, keep_logits);
            loaded.push(rank);
        }
        weights.finish(|_| false)?;
        Self::of(ranks.start, loaded)
    }

    /// Starts the threads of loaded ranks, of which the first is number `first` of its group. As
    /// [`ThreadGroup::start_part`], otherwise.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if a thread cannot start.
    pub fn of<O: TransformerOps>(first: usize, loaded: Vec<Rank<O>>) -> Result<Self> {
        let ranks = first..first + loaded.len();
        let mut commands = Vec::new();
        let mut reports = Vec::new();
        let mut threads = Vec::new();
        let shared = loaded
            .windows(2)
            .any(|pair| std::ptr::eq(pair[0].ops(), pair[1].ops()));
        for (index, rank) in ranks.clone().zip(loaded) {
            let (command, inbox) = mpsc::channel();
            let (outbox, report) = mpsc::channel();
            let thread = std::thread::Builder::new()
                .name(format!("rank-{index}"))
                .spawn(move || serve(rank, index, shared, &inbox, &outbox))
                .map_err(|error| Error::GroupLost(format!("rank {index} cannot start: {error}")))?;
            commands.push(command);
            reports.push(report);
            threads.push(thread);
        }
        Ok(Self {
            ranks,
            commands: Mutex::new(commands),
            reports: Mutex::new(reports),
            threads,
        })
    }

    /// The ranks of this process.
    pub fn ranks(&self) -> Range<usize> {
        self.ranks.clone()
    }

    /// Begins an epoch: forgets all sequences and steps, and connects every rank by its connection,
    /// in order of rank. Blocks until all are connected or one cannot be.
    ///
    /// # Errors
    /// [`Error::GroupLost`] with the reason of the first rank that is not connected.
    pub fn reset(&self, connections: Vec<Connection>) -> Result<()> {
        let commands = lock(&self.commands);
        let reports = lock(&self.reports);
        if connections.len() != commands.len() {
            return Err(Error::GroupLost(format!(
                "{} connections for {} ranks",
                connections.len(),
                commands.len()
            )));
        }
        for ((rank, command), connection) in
            self.ranks.clone().zip(commands.iter()).zip(connections)
        {
            let sent = command.send(Command::Reset(connection));
            sent.map_err(|_| ended(rank))?;
        }
        let mut result = Ok(());
        for (rank, reports) in self.ranks.clone().zip(reports.iter()) {
            // Steps of the epoch before, which nobody collects any more, come first.
            let connected = reports.iter().find_map(|report| match report {
                Report::Reset(connected) => Some(connected),
                Report::Ran(_) => None,
            });
            result = result.and(connected.unwrap_or_else(|| Err(ended(rank))));
        }
        result
    }

    /// [`ThreadGroup::reset`] where this process hosts all ranks.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if a rank has ended.
    pub fn reset_local(&self) -> Result<()> {
        self.reset(Connection::local(self.ranks.len(), &Abort::default()))
    }

    /// Draws a token of each mode with all weights of this process, so that no request is the first to
    /// touch them. The ranks are not connected then.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if a device fails.
    pub fn warm_up(&self) -> Result<()> {
        self.reset(self.ranks.clone().map(|_| Connection::Alone).collect())?;
        for (id, mode) in (0..).zip([Mode::Image, Mode::Text]) {
            self.submit(&Arc::new(first_step(id, mode)))?;
            // Ranks that have met nobody draw other tokens.
            for (rank, reports) in self.ranks.clone().zip(lock(&self.reports).iter()) {
                match reports.recv() {
                    Ok(Report::Ran(output)) => drop(output?),
                    Ok(Report::Reset(_)) | Err(_) => return Err(ended(rank)),
                }
            }
        }
        Ok(())
    }

    /// Gives a step to all ranks, after those given before.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if a rank has ended.
    pub fn submit(&self, step: &Arc<Step>) -> Result<()> {
        for (rank, command) in self.ranks.clone().zip(lock(&self.commands).iter()) {
            let sent = command.send(Command::Run(step.clone()));
            sent.map_err(|_| ended(rank))?;
        }
        Ok(())
    }

    /// Waits for the oldest step that was submitted and not collected; without one, for ever.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if a rank fails, or if ranks draw different tokens; nothing more comes
    /// of the epoch then.
    pub fn collect(&self) -> Result<StepOutput> {
        let reports = lock(&self.reports);
        let of_ranks = self.ranks.clone().zip(reports.iter());
        agree(of_ranks.map(|(rank, reports)| match reports.recv() {
            Ok(Report::Ran(output)) => (rank, Some(output)),
            Ok(Report::Reset(_)) | Err(_) => (rank, None),
        }))
    }

    /// Runs one step on all ranks while no other is in flight.
    ///
    /// # Errors
    /// As [`ThreadGroup::collect`].
    pub fn run(&self, step: Arc<Step>) -> Result<StepOutput> {
        self.submit(&step)?;
        self.collect()
    }
}

/// A sequence of one token, and a draw of what follows it.
fn first_step(id: u64, mode: Mode) -> Step {
    Step {
        id,
        admissions: vec![Admission {
            slot: 0,
            table: [0].into(),
            mode,
            draw: Some(DrawSetup {
                params: SamplingParams::GREEDY,
                seed: 0,
                image_index: 0,
                log_prob: false,
            }),
        }],
        rows: vec![Row {
            slot: 0,
            position: 0,
            token: TokenSource::Known(0),
        }],
        samples: vec![Sample {
            row: 0,
            uncond_row: None,
            n: 0,
        }],
    }
}

/// The output of all ranks; `None` of a rank that has ended.
fn agree(results: impl Iterator<Item = (usize, Option<Result<StepOutput>>)>) -> Result<StepOutput> {
    let (mut outputs, mut cause, mut waited) = (Vec::new(), None, None);
    for (rank, result) in results {
        match result {
            Some(Ok(output)) => outputs.push(output),
            // The others fail at an exchange with the rank that failed first.
            Some(Err(error @ Error::GroupLost(_))) => drop(waited.get_or_insert(error)),
            Some(Err(error)) => drop(cause.get_or_insert(error)),
            None => drop(cause.get_or_insert_with(|| ended(rank))),
        }
    }
    if let Some(error) = cause.or(waited) {
        return Err(error);
    }
    let mut outputs = outputs.into_iter();
    let leader = outputs
        .next()
        .ok_or_else(|| Error::GroupLost("no ranks".into()))?;
    if outputs.any(|other| other.drawn != leader.drawn) {
        return Err(Error::GroupLost("ranks drew different tokens".into()));
    }
    Ok(leader)
}

fn ended(rank: usize) -> Error {
    Error::GroupLost(format!("rank {rank} has ended"))
}

/// A list of channels is valid whatever a panicking holder did.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The life of a rank's thread. After a failure it is deaf to steps until the next epoch.
///
/// Steps are launched as they come and collected as they end, in order: a device that works by itself
/// never waits for this thread to hand it the next one.
fn serve<O: TransformerOps>(
    mut rank: Rank<O>,
    number: usize,
    shared: bool,
    commands: &mpsc::Receiver<Command>,
    reports: &mpsc::Sender<Report>,
) {
    let mut lost = Some("not connected".to_owned());
    loop {
        let command = match rank.in_flight() {
            0 => commands
                .recv()
                .map_err(|_| mpsc::TryRecvError::Disconnected),
            full if full == O::IN_FLIGHT => Err(mpsc::TryRecvError::Empty),
            1 => next_or_end(&rank, commands),
            _ => commands.try_recv(),
        };
        let report = match command {
            Ok(Command::Reset(connection)) => {
                let connected = rank
                    .leave()
                    .and_then(|()| connection.open(&rank, number, shared))
                    .map(|collective| rank.join(collective));
                lost = connected.as_ref().err().map(Error::to_string);
                Some(Report::Reset(connected))
            }
            Ok(Command::Run(step)) => match &lost {
                Some(reason) => Some(Report::Ran(Err(Error::GroupLost(reason.clone())))),
                // The steps before it end first.
                None => match rank.launch(&step) {
                    Ok(()) => None,
                    Err(error) => {
                        while rank.in_flight() > 0 {
                            if reports.send(Report::Ran(rank.collect())).is_err() {
                                return;
                            }
                        }
                        Some(Report::Ran(Err(error)))
                    }
                },
            },
            Err(mpsc::TryRecvError::Empty) => Some(Report::Ran(rank.collect())),
            Err(mpsc::TryRecvError::Disconnected) => return,
        };
        let Some(report) = report else { continue };
        if let Report::Ran(Err(error)) = &report
            && lost.is_none()
        {
            lost = Some(error.to_string());
            // Frees the ranks that wait for this one. What ended the epoch is known already.
            let _ = rank.leave();
        }
        if reports.send(report).is_err() {
            return;
        }
    }
}

/// What comes while a rank's only step runs; [`mpsc::TryRecvError::Empty`] once that has ended, failed, or
/// run for long. Waiting for the step alone would leave the device without work when it ends: the one that
/// follows is planned while it runs. Of a long step that is the lesser part, and what is long may wait for
/// a rank that is lost, which [`Rank::collect`] sees.
fn next_or_end<O: TransformerOps>(
    rank: &Rank<O>,
    commands: &mpsc::Receiver<Command>,
) -> Result<Command, mpsc::TryRecvError> {
    let since = Instant::now();
    while since.elapsed() < LONG {
        match commands.recv_timeout(POLL) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(mpsc::TryRecvError::Disconnected);
            }
            Ok(command) => return Ok(command),
        }
        if !matches!(rank.ended(), Ok(false)) {
            break;
        }
    }
    Err(mpsc::TryRecvError::Empty)
}

impl Drop for ThreadGroup {
    fn drop(&mut self) {
        lock(&self.commands).clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
