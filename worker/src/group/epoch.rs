//! One life of a group, without IO: what leader and follower do on which message, silence or loss.
//!
//! A [`LeaderEpoch`] and its [`FollowerEpoch`]s go Forming → Joined → Ready → Lost and never back:
//! all ranks form the group or none does, and what is lost stays lost. The next life has a higher
//! number, which only one process was given.

mod follower;
mod leader;

#[cfg(test)]
mod tests;

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use xomni_engine::schedule::Step;

use crate::backbone::Traces;

pub use follower::{FollowerAction, FollowerEpoch};
pub use leader::{LeaderAction, LeaderEpoch, Refusal};

/// How often a peer hears of this process at least.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// A peer that is silent for so long is lost.
pub const SILENCE: Duration = Duration::from_secs(2);
/// How long the ranks of an epoch may take to join and to connect.
pub const FORMING: Duration = Duration::from_secs(30);
/// How long a step may take from its plan to its end on every rank.
pub const STEP: Duration = Duration::from_secs(120);

/// Where an epoch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not all ranks have joined.
    Forming,
    /// All ranks have joined and connect to each other.
    Joined,
    /// Steps run.
    Ready,
    /// Over.
    Lost,
}

/// An epoch as its record in etcd describes it.
#[derive(Clone, PartialEq, Eq)]
pub struct EpochId {
    /// The group.
    pub group: String,
    /// Counts the epochs of the group.
    pub number: u64,
    /// Known to those who have read the record.
    pub secret: Arc<[u8]>,
    /// Ranks of the group.
    pub size: u32,
}

impl fmt::Debug for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {} of group {:?}", self.number, self.group)
    }
}

/// The part of a group that one process hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Version of its protocol.
    pub protocol_version: u32,
    /// Its ranks.
    pub ranks: Range<u32>,
    /// What determines its results.
    pub fingerprint: String,
    /// Address at which each of its ranks accepts higher ranks.
    pub collective: Vec<String>,
    /// K/V blocks it has room for.
    pub blocks: u32,
}

/// The group that all members make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formation {
    /// Address of every rank, by rank.
    pub collective: Arc<[String]>,
    /// K/V blocks that every member has room for.
    pub blocks: u32,
}

/// What a follower tells its leader.
#[derive(Debug, Clone, PartialEq)]
pub enum ToLeader {
    /// First: the group, the proof of having read the epoch's record, and who joins.
    Join {
        /// The group.
        group: String,
        /// The epoch's secret.
        secret: Vec<u8>,
        /// Who joins.
        member: Member,
    },
    /// Its ranks are connected.
    Ready,
    /// A step has run.
    Done {
        /// The step.
        step: u64,
        /// Hash of what it drew.
        hash: u64,
    },
    /// It is alive.
    Heartbeat,
    /// It wants to stop once the work in progress is done.
    Leave,
}

/// What a leader tells its followers.
#[derive(Debug, Clone, PartialEq)]
pub enum ToFollower {
    /// All ranks have joined.
    Form(Formation),
    /// A step to run.
    Plan(Arc<Step>),
    /// Outputs that begin with the next step, or have ended.
    Trace(Arc<Traces>),
    /// It is alive.
    Heartbeat,
    /// The epoch is over.
    Leave(String),
}
