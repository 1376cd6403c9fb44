//! The cluster as one coordinator sees it: what `Cluster.GetStatus`, `GET /v1/cluster` and
//! `xomni status` tell. `proto/xomni/v1/cluster.proto` documents the fields; as JSON they have the
//! same names, and may be added but never changed. An [`Observer`] makes it.

mod convert;
mod observer;
mod sightings;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use xomni_cluster::{
    Membership,
    record::{Load, Role, WorkerRecord, WorkerState},
};

pub use observer::Observer;

/// How a cluster stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterStatus {
    /// Name of the model that the coordinator serves.
    pub model: String,
    /// Version of its protocol with workers.
    pub protocol_version: u32,
    /// The coordinator itself.
    pub coordinator: CoordinatorStatus,
    /// What it knows of the workers.
    pub membership: MembershipStatus,
    /// Backbone groups, by name.
    pub groups: Vec<GroupStatus>,
    /// Decoders, by id.
    pub decoders: Vec<DecoderStatus>,
}

/// How a coordinator stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CoordinatorStatus {
    /// Version of its software.
    pub version: String,
    /// Whether it takes requests.
    pub state: CoordinatorState,
    /// Since it began to serve.
    pub uptime_seconds: f64,
    /// Requests that run.
    pub in_flight: u64,
    /// Requests that may run at once.
    pub in_flight_capacity: u64,
    /// Requests that wait to run.
    pub waiting: u64,
    /// Requests that may wait.
    pub waiting_capacity: u64,
    /// Image tokens of the requests that run or wait.
    pub backlog_tokens: u64,
}

/// Whether a coordinator takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CoordinatorState {
    /// Takes requests.
    Serving,
    /// Finishes those it has and takes no more.
    Draining,
}

/// What a coordinator knows of the workers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MembershipStatus {
    /// Whether etcd is there and tells of changes as they come; else the workers are as last seen.
    pub current: bool,
    /// Since that last changed.
    pub since_seconds: f64,
}

/// How a backbone group stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupStatus {
    /// Name of the group.
    pub id: String,
    /// Model that it serves.
    pub model: String,
    /// State of the process that leads; forming if there is none.
    pub state: WorkerState,
    /// Since it has been in this state and epoch, as far as was seen.
    pub since_seconds: f64,
    /// The epoch it is in; 0: none.
    pub epoch: u64,
    /// Tensor-parallel degree: ranks of the group.
    pub tp: u32,
    /// Ranks whose process is registered.
    pub ranks_present: u32,
    /// What determines its results to the bit.
    pub fingerprint: String,
    /// Version of its protocol.
    pub protocol_version: u32,
    /// Whether this coordinator would give it work now.
    pub takes_work: bool,
    /// Rows that this coordinator has given it and that are not done.
    pub outstanding: u64,
    /// What it can hold and holds, in rows.
    pub load: Load,
    /// Its processes, by first rank.
    pub processes: Vec<RankStatus>,
}

/// How a process with some ranks of a group stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankStatus {
    /// Id of the process.
    pub id: String,
    /// `host:port` of its services.
    pub address: String,
    /// Its first rank; rank 0 leads.
    pub first_rank: u32,
    /// Number of its ranks.
    pub ranks: u32,
    /// Whether it has joined the group.
    pub state: WorkerState,
    /// Since it has been in this state and epoch, as far as was seen.
    pub since_seconds: f64,
    /// The epoch it is in; 0: none.
    pub epoch: u64,
}

/// How a decoder stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecoderStatus {
    /// Id of the process.
    pub id: String,
    /// `host:port` of its services.
    pub address: String,
    /// Model that it serves.
    pub model: String,
    /// Whether it takes work.
    pub state: WorkerState,
    /// Since it has been in this state, as far as was seen.
    pub since_seconds: f64,
    /// What determines its results to the bit.
    pub fingerprint: String,
    /// Version of its protocol.
    pub protocol_version: u32,
    /// Whether this coordinator would give it work now.
    pub takes_work: bool,
    /// Denoising steps that this coordinator has given it and that are not done.
    pub outstanding: u64,
    /// What it can hold and holds, in denoising steps.
    pub load: Load,
}

/// What a coordinator knows of a worker besides its record.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Outlook {
    since_seconds: f64,
    takes_work: bool,
    outstanding: u64,
}

/// The groups and decoders of a membership.
fn workers(
    membership: &Membership,
    outlook: impl Fn(&WorkerRecord) -> Outlook,
) -> (Vec<GroupStatus>, Vec<DecoderStatus>) {
    let mut groups: BTreeMap<&str, Vec<&WorkerRecord>> = BTreeMap::new();
    let mut decoders = vec![];
    for record in membership.workers() {
        match &record.role {
            Role::Backbone { group, .. } => groups.entry(group).or_default().push(record),
            Role::Decoder => decoders.push(decoder(record, outlook(record))),
        }
    }
    let groups = groups.into_iter();
    let groups = groups.filter_map(|(id, processes)| group(id, &processes, &outlook));
    (groups.collect(), decoders)
}

fn decoder(record: &WorkerRecord, outlook: Outlook) -> DecoderStatus {
    DecoderStatus {
        id: record.id.clone(),
        address: record.address.clone(),
        model: record.model.clone(),
        state: record.state,
        since_seconds: outlook.since_seconds,
        fingerprint: record.fingerprint.clone(),
        protocol_version: record.protocol_version,
        takes_work: outlook.takes_work,
        outstanding: outlook.outstanding,
        load: record.load,
    }
}

/// A group, told by the process with rank 0, or else by any: of several, those that are still
/// registered from a former life included, by the one in the newest epoch.
fn group(
    id: &str,
    records: &[&WorkerRecord],
    outlook: impl Fn(&WorkerRecord) -> Outlook,
) -> Option<GroupStatus> {
    let mut processes: Vec<_> = records
        .iter()
        .filter_map(|record| rank(record, outlook(record).since_seconds))
        .collect();
    processes.sort_by(|a, b| (a.first_rank, &a.id).cmp(&(b.first_rank, &b.id)));
    let teller = processes
        .iter()
        .max_by_key(|process| (process.first_rank == 0, process.epoch))?;
    let leads = teller.first_rank == 0;
    let record = records.iter().find(|record| record.id == teller.id)?;
    let Role::Backbone { group_size, .. } = record.role else {
        return None;
    };
    let ranks = processes
        .iter()
        .flat_map(|process| process.first_rank..process.first_rank.saturating_add(process.ranks))
        .filter(|rank| *rank < group_size);
    let outlook = outlook(record);
    Some(GroupStatus {
        id: id.to_owned(),
        model: record.model.clone(),
        state: match leads {
            true => record.state,
            false => WorkerState::Forming,
        },
        since_seconds: outlook.since_seconds,
        epoch: teller.epoch,
        tp: group_size,
        ranks_present: ranks.collect::<BTreeSet<_>>().len() as u32,
        fingerprint: record.fingerprint.clone(),
        protocol_version: record.protocol_version,
        takes_work: leads && outlook.takes_work,
        outstanding: outlook.outstanding,
        load: record.load,
        processes,
    })
}

fn rank(record: &WorkerRecord, since_seconds: f64) -> Option<RankStatus> {
    let Role::Backbone {
        first_rank,
        ranks,
        epoch,
        ..
    } = record.role
    else {
        return None;
    };
    Some(RankStatus {
        id: record.id.clone(),
        address: record.address.clone(),
        first_rank,
        ranks,
        state: record.state,
        since_seconds,
        epoch,
    })
}

#[cfg(test)]
mod tests;
