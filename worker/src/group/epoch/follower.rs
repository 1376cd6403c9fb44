//! A follower's side of an epoch.

use std::{sync::Arc, time::Instant};

use xomni_engine::schedule::Step;

use super::{EpochId, FORMING, Formation, HEARTBEAT, Member, SILENCE, Stage, ToFollower, ToLeader};
use crate::backbone::Traces;

/// What a follower has to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum FollowerAction {
    /// Send to the leader.
    Send(ToLeader),
    /// Connect the ranks of this process, then call [`FollowerEpoch::connected`].
    Connect(Formation),
    /// Run a step, then call [`FollowerEpoch::done`].
    Run(Arc<Step>),
    /// Begin and end the spans of outputs.
    Trace(Arc<Traces>),
    /// The epoch is over.
    End(String),
}

/// An epoch as one of its followers knows it.
#[derive(Debug)]
pub struct FollowerEpoch {
    id: EpochId,
    member: Member,
    stage: Stage,
    /// Steps received.
    received: u64,
    since: Instant,
    heard: Instant,
    beat: Instant,
    actions: Vec<FollowerAction>,
}

impl FollowerEpoch {
    /// Joins an epoch.
    pub fn new(id: EpochId, member: Member, now: Instant) -> Self {
        let join = ToLeader::Join {
            group: id.group.clone(),
            secret: id.secret.to_vec(),
            member: member.clone(),
        };
        Self {
            id,
            member,
            stage: Stage::Forming,
            received: 0,
            since: now,
            heard: now,
            beat: now,
            actions: vec![FollowerAction::Send(join)],
        }
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
    pub fn take_actions(&mut self) -> Vec<FollowerAction> {
        std::mem::take(&mut self.actions)
    }

    /// A frame of the leader.
    pub fn frame(&mut self, now: Instant, epoch: u64, frame: ToFollower) {
        if self.stage == Stage::Lost {
            return;
        }
        if epoch != self.id.number {
            return self.leave(&format!("the leader sent a frame of epoch {epoch}"));
        }
        self.heard = now;
        match frame {
            ToFollower::Heartbeat => {}
            ToFollower::Form(formation) if self.stage == Stage::Forming => {
                match self.check(&formation) {
                    Ok(()) => {
                        self.stage = Stage::Joined;
                        self.actions.push(FollowerAction::Connect(formation));
                    }
                    Err(reason) => self.leave(&reason),
                }
            }
            ToFollower::Plan(step) if self.stage == Stage::Ready && step.id == self.received => {
                self.received += 1;
                self.actions.push(FollowerAction::Run(step));
            }
            ToFollower::Trace(traces) if self.stage == Stage::Ready => {
                self.actions.push(FollowerAction::Trace(traces));
            }
            ToFollower::Leave(reason) => self.leave(&reason),
            ToFollower::Form(_) | ToFollower::Plan(_) | ToFollower::Trace(_) => {
                self.leave("the leader sent a frame out of order");
            }
        }
    }

    fn check(&self, formation: &Formation) -> Result<(), String> {
        let addresses = formation.collective.len();
        let size = self.id.size;
        if addresses != size as usize {
            return Err(format!("{addresses} addresses for {size} ranks"));
        }
        if !(1..=self.member.blocks).contains(&formation.blocks) {
            let (blocks, room) = (formation.blocks, self.member.blocks);
            return Err(format!(
                "{blocks} K/V blocks where there is room for {room}"
            ));
        }
        Ok(())
    }

    /// The connection to the leader is gone.
    pub fn gone(&mut self, reason: &str) {
        self.leave(reason);
    }

    /// The ranks of this process are connected.
    pub fn connected(&mut self, now: Instant) {
        if self.stage == Stage::Joined {
            self.stage = Stage::Ready;
            self.send(now, ToLeader::Ready);
        }
    }

    /// A step has run on the ranks of this process.
    pub fn done(&mut self, now: Instant, step: u64, hash: u64) {
        if self.stage == Stage::Ready {
            self.send(now, ToLeader::Done { step, hash });
        }
    }

    /// This process wants to stop: asks the leader to end the epoch when its work is done.
    pub fn drain(&mut self, now: Instant) {
        if self.stage != Stage::Lost {
            self.send(now, ToLeader::Leave);
        }
    }

    fn send(&mut self, now: Instant, frame: ToLeader) {
        self.beat = now;
        self.actions.push(FollowerAction::Send(frame));
    }

    /// Time has passed. Call it a few times a second at least.
    pub fn tick(&mut self, now: Instant) {
        if self.stage == Stage::Lost {
            return;
        }
        let late = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        if late(self.heard, SILENCE) {
            return self.leave("the leader is silent");
        }
        if self.stage < Stage::Ready && late(self.since, 2 * FORMING) {
            return self.leave("not formed in time");
        }
        if late(self.beat, HEARTBEAT) {
            self.send(now, ToLeader::Heartbeat);
        }
    }

    /// Ends the epoch for this process.
    pub fn leave(&mut self, reason: &str) {
        if self.stage != Stage::Lost {
            self.stage = Stage::Lost;
            self.actions.push(FollowerAction::End(reason.to_owned()));
        }
    }
}
