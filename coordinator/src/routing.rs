//! Which worker takes a job: the one that is soonest through with the work that is known to wait
//! for it. [`Routing`] is the table, without IO; [`Router`] shares it among the jobs of a process.

mod router;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use xomni_cluster::record::{Role, WorkerRecord, WorkerState};
use xomni_proto::PROTOCOL_VERSION;

pub use router::{Assignment, Router};

/// What a worker does for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Draws tokens.
    Backbone,
    /// Develops them.
    Decoder,
}

impl Stage {
    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backbone => "backbone",
            Self::Decoder => "decoder",
        }
    }
}

/// One life of a worker: a process, and for a backbone one epoch of its group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Life {
    /// Id of the process.
    pub worker: String,
    /// Epoch of the group; 0 for a decoder.
    pub epoch: u64,
}

/// What a job asks of the worker that takes it.
#[derive(Debug, Clone, Copy)]
pub struct Need<'a> {
    /// What it has to do.
    pub stage: Stage,
    /// The model it has to serve.
    pub model: &'a str,
    /// The numerics it has to have; any if `None`.
    pub fingerprint: Option<&'a str>,
    /// Those that have refused the job.
    pub refused: &'a [Life],
}

impl<'a> Need<'a> {
    /// Anyone who serves `model`.
    pub fn any(stage: Stage, model: &'a str) -> Self {
        Self {
            stage,
            model,
            fingerprint: None,
            refused: &[],
        }
    }
}

/// Where a worker that was chosen stands now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It works, or drains what it has.
    Present,
    /// The process is there in another epoch, or in none: what it had is lost.
    Superseded,
    /// Nothing is known of it; its lease may have lapsed while it works on.
    Absent,
}

/// The workers of the cluster and the work that this process has given them.
#[derive(Debug)]
pub struct Routing {
    cooldown: Duration,
    /// Everyone who can be called: leaders of complete groups, and decoders.
    workers: BTreeMap<Life, Worker>,
    /// Epoch of each process that is registered, whether it can be called or not.
    epochs: HashMap<String, u64>,
    /// Work of this process, in the units of [`xomni_cluster::record::Load::backlog`].
    outstanding: HashMap<Life, u64>,
    /// Those seen failing, and until when they are avoided.
    cooling: HashMap<Life, Instant>,
}

#[derive(Debug)]
struct Worker {
    stage: Stage,
    record: WorkerRecord,
}

impl Routing {
    /// An empty table that avoids a failing worker for `cooldown`, or until it has another life.
    pub fn new(cooldown: Duration) -> Self {
        Self {
            cooldown,
            workers: BTreeMap::new(),
            epochs: HashMap::new(),
            outstanding: HashMap::new(),
            cooling: HashMap::new(),
        }
    }

    /// Takes a new state of the membership.
    pub fn update<'a>(&mut self, records: impl IntoIterator<Item = &'a WorkerRecord>) {
        self.workers.clear();
        self.epochs.clear();
        for record in records {
            let (stage, epoch) = match record.role {
                Role::Backbone { epoch, .. } => (Stage::Backbone, epoch),
                Role::Decoder => (Stage::Decoder, 0),
            };
            let follows = matches!(
                record.role,
                Role::Backbone {
                    first_rank: 1..,
                    ..
                }
            );
            let serves = !matches!(record.state, WorkerState::Forming);
            let understood = record.protocol_version.abs_diff(PROTOCOL_VERSION) <= 1;
            // An epoch that is not complete is none that a job can be running in.
            let current = if serves { epoch } else { 0 };
            self.epochs.insert(record.id.clone(), current);
            if serves && understood && !follows {
                let worker = record.id.clone();
                let record = record.clone();
                self.workers
                    .insert(Life { worker, epoch }, Worker { stage, record });
            }
        }
        let workers = &self.workers;
        self.cooling.retain(|life, _| workers.contains_key(life));
    }

    /// The worker for a job, or `None` if nobody can take it now.
    pub fn choose(&self, need: Need, now: Instant) -> Option<(Life, &WorkerRecord)> {
        let usual = self.usual_rate(need);
        let soonest = self
            .candidates(need, now)
            .map(|(life, record)| {
                (
                    self.known_work(life, record) as f64 / rate(record, usual),
                    life,
                )
            })
            .min_by(|(a, life), (b, other)| a.total_cmp(b).then_with(|| life.cmp(other)));
        let (_, life) = soonest?;
        Some((life.clone(), &self.workers.get(life)?.record))
    }

    fn candidates(&self, need: Need, now: Instant) -> impl Iterator<Item = (&Life, &WorkerRecord)> {
        self.suitable(need).filter(move |(life, record)| {
            record.state == WorkerState::Ready
                && !need.refused.contains(life)
                && self.cooling.get(life).is_none_or(|until| *until <= now)
        })
    }

    fn suitable(&self, need: Need) -> impl Iterator<Item = (&Life, &WorkerRecord)> {
        let suits = move |worker: &Worker| {
            worker.stage == need.stage
                && worker.record.model == need.model
                && need
                    .fingerprint
                    .is_none_or(|fingerprint| worker.record.fingerprint == fingerprint)
        };
        self.workers
            .iter()
            .filter(move |(_, worker)| suits(worker))
            .map(|(life, worker)| (life, &worker.record))
    }

    /// Work known to wait for a worker. What it reports includes most of this process's own, so
    /// the two are not added.
    fn known_work(&self, life: &Life, record: &WorkerRecord) -> u64 {
        let own = self.outstanding.get(life).copied().unwrap_or(0);
        own.max(record.load.backlog)
    }

    /// The rate of a worker that has not told its own: the mean of those that have.
    fn usual_rate(&self, need: Need) -> f64 {
        let known = self
            .suitable(need)
            .map(|(_, record)| record.load.rate)
            .filter(|rate| *rate > 0.0);
        let (sum, count) = known.fold((0.0, 0.0), |(sum, count), rate| (sum + rate, count + 1.0));
        if count > 0.0 { sum / count } else { 1.0 }
    }

    /// How many take work of this kind, now or when a cooldown is over.
    pub fn ready(&self, stage: Stage, model: &str) -> usize {
        self.suitable(Need::any(stage, model))
            .filter(|(_, record)| record.state == WorkerState::Ready)
            .count()
    }

    /// Work a second of all who serve `model` together; 0 if none has told.
    pub fn rate(&self, stage: Stage, model: &str) -> f64 {
        let suitable = self.suitable(Need::any(stage, model));
        let rates = suitable.map(|(_, record)| record.load.rate);
        rates.filter(|rate| *rate > 0.0).sum()
    }

    /// Whether a worker would be given work of this kind now.
    pub fn takes_work(&self, life: &Life, need: Need, now: Instant) -> bool {
        self.candidates(need, now).any(|(other, _)| other == life)
    }

    /// When the next cooldown ends, if one runs.
    pub fn next_cooled(&self, now: Instant) -> Option<Instant> {
        self.cooling.values().copied().filter(|t| *t > now).min()
    }

    /// Notes that a worker failed.
    pub fn on_failure(&mut self, life: &Life, now: Instant) {
        if self.workers.contains_key(life) {
            self.cooling.insert(life.clone(), now + self.cooldown);
        }
    }

    /// Notes that a worker was given work.
    pub fn on_assigned(&mut self, life: &Life, work: u64) {
        *self.outstanding.entry(life.clone()).or_default() += work;
    }

    /// Notes that a worker is through with, or rid of, some of its work.
    pub fn on_done(&mut self, life: &Life, work: u64) {
        if let Some(outstanding) = self.outstanding.get_mut(life) {
            *outstanding = outstanding.saturating_sub(work);
            if *outstanding == 0 {
                self.outstanding.remove(life);
            }
        }
    }

    /// Work of this process that a worker has.
    pub fn outstanding(&self, life: &Life) -> u64 {
        self.outstanding.get(life).copied().unwrap_or(0)
    }

    /// Where a worker stands.
    pub fn presence(&self, life: &Life) -> Presence {
        match self.epochs.get(&life.worker) {
            Some(epoch) if *epoch == life.epoch => Presence::Present,
            Some(_) => Presence::Superseded,
            None => Presence::Absent,
        }
    }
}

fn rate(record: &WorkerRecord, usual: f64) -> f64 {
    if record.load.rate > 0.0 {
        record.load.rate
    } else {
        usual
    }
}
