//! The leader's side of an epoch.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use sha2::{Digest, Sha256};
use xomni_engine::schedule::Step;

use super::{
    EpochId, FORMING, Formation, HEARTBEAT, Member, SILENCE, STEP, Stage, ToFollower, ToLeader,
};
use crate::backbone::Traces;

/// Names a connection of a follower within an epoch.
pub type PeerId = u64;

/// Why a connection does not become a member. The epoch goes on without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is of another epoch, or this one takes no more members.
    #[error("epoch {got} is not the one that forms, {current}")]
    Epoch {
        /// The epoch of the frame.
        got: u64,
        /// The leader's epoch.
        current: u64,
    },
    /// It does not fit the group.
    #[error("{0}")]
    Mismatch(String),
    /// It has not read the epoch's record.
    #[error("the epoch's secret is another")]
    Secret,
}

/// What the leader has to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum LeaderAction {
    /// Send to a member.
    Send(PeerId, ToFollower),
    /// Connect the ranks of this process, then call [`LeaderEpoch::connected`].
    Connect(Formation),
    /// All ranks are ready: take jobs, with so many K/V blocks.
    Serve(u32),
    /// A member wants to stop: take no more jobs, finish what runs, then call
    /// [`LeaderEpoch::leave`].
    Drain,
    /// The epoch is over.
    End(String),
}

/// Progress of a member through the steps planned.
#[derive(Debug)]
struct Progress {
    /// Steps done.
    done: u64,
    /// When it last got on, or was given something to do.
    at: Instant,
}

#[derive(Debug)]
struct Peer {
    member: Member,
    ready: bool,
    heard: Instant,
    progress: Progress,
}

/// An epoch as its leader knows it.
#[derive(Debug)]
pub struct LeaderEpoch {
    id: EpochId,
    own: Member,
    stage: Stage,
    peers: BTreeMap<PeerId, Peer>,
    own_ready: bool,
    own_progress: Progress,
    /// Steps planned.
    planned: u64,
    /// Hashes of the steps from `first_hash` on that some member has done.
    hashes: VecDeque<u64>,
    first_hash: u64,
    since: Instant,
    beat: Instant,
    actions: Vec<LeaderAction>,
}

impl LeaderEpoch {
    /// An epoch that begins with the ranks of this process.
    pub fn new(id: EpochId, own: Member, now: Instant) -> Self {
        let mut epoch = Self {
            id,
            own,
            stage: Stage::Forming,
            peers: BTreeMap::new(),
            own_ready: false,
            own_progress: Progress { done: 0, at: now },
            planned: 0,
            hashes: VecDeque::new(),
            first_hash: 0,
            since: now,
            beat: now,
            actions: Vec::new(),
        };
        epoch.form_if_complete(now);
        epoch
    }

    /// Its record.
    pub fn id(&self) -> &EpochId {
        &self.id
    }

    /// Where it is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// What there is to do since the last call.
    pub fn take_actions(&mut self) -> Vec<LeaderAction> {
        std::mem::take(&mut self.actions)
    }

    /// The first frame of a connection.
    ///
    /// # Errors
    /// Why it does not become a member.
    pub fn join(
        &mut self,
        now: Instant,
        peer: PeerId,
        epoch: u64,
        frame: ToLeader,
    ) -> Result<(), Refusal> {
        let current = self.id.number;
        if epoch != current || self.stage != Stage::Forming {
            return Err(Refusal::Epoch {
                got: epoch,
                current,
            });
        }
        let ToLeader::Join {
            group,
            secret,
            member,
        } = frame
        else {
            return Err(Refusal::Mismatch("the first frame must be a join".into()));
        };
        // Comparing digests takes the same time wherever the secrets differ.
        if Sha256::digest(&secret) != Sha256::digest(&self.id.secret) {
            return Err(Refusal::Secret);
        }
        self.check(&group, &member).map_err(Refusal::Mismatch)?;
        let progress = Progress { done: 0, at: now };
        self.peers.insert(
            peer,
            Peer {
                member,
                ready: false,
                heard: now,
                progress,
            },
        );
        self.form_if_complete(now);
        Ok(())
    }

    fn check(&self, group: &str, member: &Member) -> Result<(), String> {
        let own = &self.own;
        if group != self.id.group {
            return Err(format!("group {group:?} is not {:?}", self.id.group));
        }
        if member.protocol_version != own.protocol_version {
            let versions = (member.protocol_version, own.protocol_version);
            return Err(format!(
                "protocol version {} is not {}",
                versions.0, versions.1
            ));
        }
        if member.fingerprint != own.fingerprint {
            let (theirs, ours) = (&member.fingerprint, &own.fingerprint);
            return Err(format!("fingerprint {theirs:?} is not {ours:?}"));
        }
        let ranks = &member.ranks;
        let taken = self.members().find(|other| overlap(&other.ranks, ranks));
        if ranks.is_empty() || ranks.end > self.id.size || taken.is_some() {
            let size = self.id.size;
            return Err(format!("ranks {ranks:?} are not free among 0..{size}"));
        }
        if member.collective.len() != ranks.len() {
            let addresses = member.collective.len();
            return Err(format!("{addresses} addresses for ranks {ranks:?}"));
        }
        if member.blocks == 0 {
            return Err("no room for keys and values".into());
        }
        Ok(())
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.own).chain(self.peers.values().map(|peer| &peer.member))
    }

    fn form_if_complete(&mut self, now: Instant) {
        let ranks: usize = self.members().map(|member| member.ranks.len()).sum();
        if ranks < self.id.size as usize {
            return;
        }
        let mut members: Vec<&Member> = self.members().collect();
        members.sort_by_key(|member| member.ranks.start);
        let formation = Formation {
            collective: members
                .iter()
                .flat_map(|member| member.collective.iter().cloned())
                .collect(),
            blocks: members
                .iter()
                .map(|member| member.blocks)
                .min()
                .unwrap_or(0),
        };
        self.stage = Stage::Joined;
        self.since = now;
        self.broadcast(&ToFollower::Form(formation.clone()));
        self.actions.push(LeaderAction::Connect(formation));
    }

    fn broadcast(&mut self, frame: &ToFollower) {
        let send = |&peer: &PeerId| LeaderAction::Send(peer, frame.clone());
        self.actions.extend(self.peers.keys().map(send));
    }

    /// A later frame of a member.
    pub fn frame(&mut self, now: Instant, peer: PeerId, epoch: u64, frame: ToLeader) {
        if self.stage == Stage::Lost {
            return;
        }
        let current = self.id.number;
        let Some(member) = self.peers.get_mut(&peer) else {
            return;
        };
        if epoch != current {
            let ranks = member.member.ranks.clone();
            return self.leave(&format!("ranks {ranks:?} sent a frame of epoch {epoch}"));
        }
        member.heard = now;
        match frame {
            ToLeader::Heartbeat => {}
            ToLeader::Ready if self.stage == Stage::Joined && !member.ready => {
                member.ready = true;
                self.serve_if_ready();
            }
            ToLeader::Done { step, hash } if self.stage == Stage::Ready => {
                self.done(now, Some(peer), step, hash);
            }
            ToLeader::Leave => self.actions.push(LeaderAction::Drain),
            ToLeader::Join { .. } | ToLeader::Ready | ToLeader::Done { .. } => {
                self.leave("a member sent a frame out of order");
            }
        }
    }

    /// The connection of a member is gone.
    pub fn gone(&mut self, peer: PeerId, reason: &str) {
        if let Some(peer) = self.peers.get(&peer) {
            self.leave(&format!("ranks {:?}: {reason}", peer.member.ranks));
        }
    }

    /// The ranks of this process are connected.
    pub fn connected(&mut self) {
        if self.stage == Stage::Joined {
            self.own_ready = true;
            self.serve_if_ready();
        }
    }

    fn serve_if_ready(&mut self) {
        if self.own_ready && self.peers.values().all(|peer| peer.ready) {
            self.stage = Stage::Ready;
            let blocks = self.members().map(|member| member.blocks).min();
            self.actions.push(LeaderAction::Serve(blocks.unwrap_or(0)));
        }
    }

    /// A step that the ranks of this process were given.
    pub fn plan(&mut self, now: Instant, step: &Arc<Step>) {
        if self.stage != Stage::Ready || step.id != self.planned {
            return self.leave("a step was planned out of order");
        }
        let peers = self.peers.values_mut().map(|peer| &mut peer.progress);
        for progress in peers.chain([&mut self.own_progress]) {
            if progress.done == self.planned {
                progress.at = now;
            }
        }
        self.planned += 1;
        self.beat = now;
        self.broadcast(&ToFollower::Plan(step.clone()));
    }

    /// Outputs that begin with the next step, or have ended.
    pub fn trace(&mut self, traces: Arc<Traces>) {
        if self.stage == Stage::Ready {
            self.broadcast(&ToFollower::Trace(traces));
        }
    }

    /// A step has run on the ranks of this process.
    pub fn own_done(&mut self, now: Instant, step: u64, hash: u64) {
        if self.stage == Stage::Ready {
            self.done(now, None, step, hash);
        }
    }

    fn done(&mut self, now: Instant, peer: Option<PeerId>, step: u64, hash: u64) {
        let progress = match peer {
            Some(peer) => self.peers.get_mut(&peer).map(|peer| &mut peer.progress),
            None => Some(&mut self.own_progress),
        };
        let Some(progress) = progress else { return };
        if step != progress.done || step >= self.planned {
            return self.leave("a step was done out of order");
        }
        progress.done += 1;
        progress.at = now;
        match self.hashes.get((step - self.first_hash) as usize) {
            Some(&known) if known != hash => {
                return self.leave(&format!("ranks drew different tokens in step {step}"));
            }
            Some(_) => {}
            None => self.hashes.push_back(hash),
        }
        let done = self.peers.values().map(|peer| peer.progress.done);
        let slowest = done.chain([self.own_progress.done]).min().unwrap_or(0);
        while self.first_hash < slowest {
            self.hashes.pop_front();
            self.first_hash += 1;
        }
    }

    /// Time has passed. Call it a few times a second at least.
    pub fn tick(&mut self, now: Instant) {
        if self.stage == Stage::Lost {
            return;
        }
        let late = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        if self.stage < Stage::Ready && late(self.since, FORMING) {
            let missing: Vec<u32> = (0..self.id.size)
                .filter(|rank| !self.members().any(|member| member.ranks.contains(rank)))
                .collect();
            return self.leave(&format!("not formed in time; ranks missing: {missing:?}"));
        }
        for peer in self.peers.values() {
            let ranks = &peer.member.ranks;
            let progress = &peer.progress;
            if late(peer.heard, SILENCE) {
                return self.leave(&format!("ranks {ranks:?} are silent"));
            }
            if progress.done < self.planned && late(progress.at, STEP) {
                let step = progress.done;
                return self.leave(&format!("step {step} is overdue on ranks {ranks:?}"));
            }
        }
        if self.own_progress.done < self.planned && late(self.own_progress.at, STEP) {
            let step = self.own_progress.done;
            return self.leave(&format!("step {step} is overdue on the leader's ranks"));
        }
        if late(self.beat, HEARTBEAT) {
            self.beat = now;
            self.broadcast(&ToFollower::Heartbeat);
        }
    }

    /// Ends the epoch, for all its members.
    pub fn leave(&mut self, reason: &str) {
        if self.stage == Stage::Lost {
            return;
        }
        self.stage = Stage::Lost;
        self.broadcast(&ToFollower::Leave(reason.to_owned()));
        self.actions.push(LeaderAction::End(reason.to_owned()));
    }
}

fn overlap(a: &std::ops::Range<u32>, b: &std::ops::Range<u32>) -> bool {
    a.start < b.end && b.start < a.end
}
