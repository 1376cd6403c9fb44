//! Ranks on threads of this process: all of a group, or the part that this process hosts.

use std::{
    fmt,
    net::TcpListener,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::JoinHandle,
};

use super::rank::{Rank, StepOutput};
use crate::{
    Error, Result,
    checkpoint::{BackboneConfig, Weights},
    model::backbone::Backbone,
    ops::TransformerOps,
    parallel::{
        Collective, LocalCollective, NetAbort, NetCollective, NetConfig, Shard, local_group,
    },
    schedule::Step,
};

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
    /// Control tokens that text never draws.
    pub suppressed: Vec<u32>,
    /// Whether [`StepOutput::logits`] is filled.
    pub keep_logits: bool,
}

/// How a rank reaches the others in an epoch.
#[derive(Debug)]
pub enum Connection {
    /// All ranks are threads of this process.
    Local(LocalCollective),
    /// Ranks of several processes.
    Net {
        /// Bound to the rank's address.
        listener: TcpListener,
        /// The rank's place in the epoch.
        config: NetConfig,
        /// Ends the epoch from another thread.
        abort: NetAbort,
    },
}

impl Connection {
    fn open<O: TransformerOps>(self) -> Result<Box<dyn Collective<O>>> {
        Ok(match self {
            Self::Local(collective) => Box::new(collective),
            Self::Net {
                listener,
                config,
                abort,
            } => Box::new(NetCollective::connect(&listener, &config, &abort)?),
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
    /// All ranks of a group, ready to run steps.
    ///
    /// # Errors
    /// As [`ThreadGroup::start_part`].
    pub fn start<O: TransformerOps>(
        ops: &Arc<O>,
        config: &BackboneConfig,
        weights: Weights,
        group: &GroupConfig,
    ) -> Result<Self> {
        let ranks = Self::start_part(ops, config, weights, group, 0..group.ranks)?;
        ranks.reset_local()?;
        Ok(ranks)
    }

    /// Loads the parts of `weights` that `ranks` hold (and refuses tensors that no part knows), then
    /// starts the threads. They run no step before the first [`ThreadGroup::reset`].
    ///
    /// # Errors
    /// A degree that cannot work, or whatever loading says.
    pub fn start_part<O: TransformerOps>(
        ops: &Arc<O>,
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
        let mut commands = Vec::new();
        let mut reports = Vec::new();
        let mut threads = Vec::new();
        let mut loaded = Vec::new();
        for index in ranks.clone() {
            let shard = Shard::new(index, group.ranks)?;
            let (ops, unconnected) = (ops.clone(), Box::new(Unconnected(group.ranks)));
            let rows = group.max_rows;
            let backbone = Backbone::load(ops, shard, unconnected, config, &mut weights, rows)?;
            let kv = backbone.kv_cache(group.blocks, group.block_size)?;
            let rank = Rank::new(backbone, kv, &group.suppressed, group.keep_logits);
            loaded.push((index, rank));
        }
        weights.finish(|_| false)?;
        for (index, rank) in loaded {
            let (command, inbox) = mpsc::channel();
            let (outbox, report) = mpsc::channel();
            let thread = std::thread::Builder::new()
                .name(format!("rank-{index}"))
                .spawn(move || serve(rank, &inbox, &outbox))
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
        let ends = local_group(self.ranks.len());
        self.reset(ends.into_iter().map(Connection::Local).collect())
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
        let mut first: Result<Option<StepOutput>> = Ok(None);
        for (rank, reports) in self.ranks.clone().zip(reports.iter()) {
            let output = match reports.recv() {
                Ok(Report::Ran(output)) => output,
                Ok(Report::Reset(_)) | Err(_) => Err(ended(rank)),
            };
            first = match (first, output) {
                (Err(error), _) | (Ok(_), Err(error)) => Err(error),
                (Ok(None), Ok(output)) => Ok(Some(output)),
                (Ok(Some(first)), Ok(output)) if first.drawn == output.drawn => Ok(Some(first)),
                (Ok(Some(_)), Ok(_)) => Err(Error::GroupLost("ranks drew different tokens".into())),
            };
        }
        first?.ok_or_else(|| Error::GroupLost("no ranks".into()))
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

fn ended(rank: usize) -> Error {
    Error::GroupLost(format!("rank {rank} has ended"))
}

/// A list of channels is valid whatever a panicking holder did.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a rank has between epochs.
struct Unconnected(usize);

impl<O: TransformerOps> Collective<O> for Unconnected {
    fn size(&self) -> usize {
        self.0
    }

    fn all_gather(&mut self, _: &O, _: &O::Buffer, _: usize, _: &mut [O::Buffer]) -> Result<()> {
        Err(Error::GroupLost("not connected".into()))
    }
}

/// The life of a rank's thread. After a failure it is deaf to steps until the next epoch.
fn serve<O: TransformerOps>(
    mut rank: Rank<O>,
    commands: &mpsc::Receiver<Command>,
    reports: &mpsc::Sender<Report>,
) {
    let mut lost = Some("not connected".to_owned());
    for command in commands {
        let report = match command {
            Command::Reset(connection) => {
                let connected = connection
                    .open()
                    .map(|collective| rank.begin_epoch(collective));
                lost = connected.as_ref().err().map(Error::to_string);
                Report::Reset(connected)
            }
            Command::Run(step) => Report::Ran(match &lost {
                Some(reason) => Err(Error::GroupLost(reason.clone())),
                None => rank.run(&step),
            }),
        };
        if let Report::Ran(Err(error)) = &report
            && lost.is_none()
        {
            lost = Some(error.to_string());
            // Frees the ranks that wait for this one.
            rank.begin_epoch(Box::new(Unconnected(rank.group_size())));
        }
        if reports.send(report).is_err() {
            return;
        }
    }
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
