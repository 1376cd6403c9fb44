//! Two processes that want to lead a group, two that follow, the store, and the connections between them: these keep order,
//! break, and carry frames of other epochs.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use proptest::prelude::*;
use xomni_engine::schedule::Sample;

use super::super::*;

const SIZE: u32 = 4;
/// Ranks of the leading processes, and of each following one.
pub const PARTS: [Range<u32>; 3] = [0..1, 1..3, 3..4];

pub fn member(ranks: Range<u32>) -> Member {
    Member {
        protocol_version: 1,
        collective: ranks.clone().map(|rank| format!("host:{rank}")).collect(),
        fingerprint: "f".into(),
        blocks: 10 + ranks.start,
        ranks,
    }
}

pub fn id(number: u64) -> EpochId {
    EpochId {
        group: "g".into(),
        number,
        secret: number.to_be_bytes().as_slice().into(),
        size: SIZE,
    }
}

/// A step that says which epoch planned it.
fn step(epoch: u64, step: u64) -> Arc<Step> {
    let samples = vec![Sample {
        row: 0,
        uncond_row: None,
        n: epoch as u32,
    }];
    Arc::new(Step {
        id: step,
        samples,
        ..Step::default()
    })
}

pub struct Led {
    pub epoch: LeaderEpoch,
    /// The process that leads.
    owner: usize,
    planned: u64,
    done: u64,
    served: bool,
    over: bool,
}

pub struct Followed {
    pub epoch: FollowerEpoch,
    link: usize,
    pub ran: u64,
    done: u64,
    over: bool,
}

/// A connection. What one end has sent arrives before the end of the connection.
struct Link {
    number: u64,
    follower: usize,
    joined: bool,
    to_leader: VecDeque<(u64, ToLeader)>,
    to_follower: VecDeque<(u64, ToFollower)>,
    closed: bool,
}

/// Two processes that want to lead, two that follow, and the store.
pub struct World {
    pub now: Instant,
    newest: u64,
    /// The newest epoch that each leading process has seen.
    seen: [u64; 2],
    pub led: BTreeMap<u64, Led>,
    pub followed: [Option<Followed>; 2],
    /// The last epoch each follower was in.
    last: [u64; 2],
    links: Vec<Link>,
    /// Epochs in which the ranks of each follower were connected.
    were_ready: BTreeSet<(usize, u64)>,
}

#[derive(Debug, Clone)]
pub enum Op {
    /// A leading process looks at the store.
    Look(usize),
    /// It takes the next epoch, if none was taken since it looked.
    Take(usize),
    /// A follower joins the n-th epoch from the newest.
    Follow(usize, u64),
    /// A frame, or the end, arrives at the leader's end of a connection.
    ToLeader(usize),
    /// And at the follower's.
    ToFollower(usize),
    /// A frame of another epoch slips into a connection.
    StaleToLeader(usize, u64),
    StaleToFollower(usize, u64),
    /// A connection breaks.
    Break(usize),
    /// The ranks of a process are connected.
    LeaderConnected(u64),
    FollowerConnected(usize),
    Plan(u64),
    Trace(u64),
    LeaderDone(u64),
    FollowerDone(usize, bool),
    Wait(u64),
}

impl World {
    pub fn new() -> Self {
        Self {
            now: Instant::now(),
            newest: 0,
            seen: [0; 2],
            led: BTreeMap::new(),
            followed: [None, None],
            last: [0; 2],
            links: vec![],
            were_ready: BTreeSet::new(),
        }
    }

    /// The `back`-th connection from the newest.
    fn link(&self, back: usize) -> Option<usize> {
        self.links.len().checked_sub(back + 1)
    }

    fn led(&mut self, back: u64) -> Option<&mut Led> {
        self.led.get_mut(&self.newest.checked_sub(back)?)
    }

    pub fn run(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let now = self.now;
        match *op {
            Op::Look(process) => self.seen[process] = self.newest,
            Op::Take(process) => self.take(process)?,
            Op::Follow(follower, back) => self.follow(follower, back),
            Op::ToLeader(back) => self.arrive_at_leader(back)?,
            Op::ToFollower(back) => self.arrive_at_follower(back)?,
            Op::StaleToLeader(back, age) => {
                if let Some(link) = self.link(back).map(|link| &mut self.links[link]) {
                    let frame = (link.number.wrapping_sub(age), ToLeader::Heartbeat);
                    link.to_leader.push_front(frame);
                }
            }
            Op::StaleToFollower(back, age) => {
                if let Some(link) = self.link(back).map(|link| &mut self.links[link]) {
                    let stale = link.number.wrapping_sub(age);
                    let frame = ToFollower::Plan(step(stale, 0));
                    link.to_follower.push_front((stale, frame));
                }
            }
            Op::Break(back) => {
                if let Some(link) = self.link(back).map(|link| &mut self.links[link]) {
                    link.closed = true;
                    link.to_leader.clear();
                    link.to_follower.clear();
                }
            }
            Op::LeaderConnected(back) => {
                if let Some(led) = self.led(back) {
                    led.epoch.connected();
                }
            }
            Op::FollowerConnected(follower) => {
                if let Some(followed) = &mut self.followed[follower] {
                    followed.epoch.connected(now);
                    if followed.epoch.stage() == Stage::Ready {
                        let number = followed.epoch.id().number;
                        self.were_ready.insert((follower, number));
                    }
                }
            }
            Op::Plan(back) => {
                if let Some(led) = self.led(back)
                    && led.epoch.stage() == Stage::Ready
                    && led.planned < led.done + 2
                {
                    let planned = step(led.epoch.id().number, led.planned);
                    led.planned += 1;
                    led.epoch.plan(now, &planned);
                }
            }
            Op::LeaderDone(back) => {
                if let Some(led) = self.led(back)
                    && led.done < led.planned
                {
                    led.epoch.own_done(now, led.done, led.done * 7);
                    led.done += 1;
                }
            }
            Op::FollowerDone(follower, same) => {
                if let Some(followed) = &mut self.followed[follower]
                    && followed.done < followed.ran
                {
                    let hash = followed.done * 7 + u64::from(!same);
                    followed.epoch.done(now, followed.done, hash);
                    followed.done += 1;
                }
            }
            Op::Trace(back) => {
                if let Some(led) = self.led(back) {
                    let ended = vec![(led.epoch.id().number, 0)];
                    let begun = vec![];
                    led.epoch.trace(Arc::new(Traces { begun, ended }));
                }
            }
            Op::Wait(milliseconds) => {
                self.now += Duration::from_millis(milliseconds);
                let now = self.now;
                self.led.values_mut().for_each(|led| led.epoch.tick(now));
                let followed = self.followed.iter_mut().flatten();
                followed.for_each(|followed| followed.epoch.tick(now));
            }
        }
        self.settle()
    }

    fn take(&mut self, process: usize) -> Result<(), TestCaseError> {
        if self.seen[process] != self.newest {
            return Ok(());
        }
        self.newest += 1;
        self.seen[process] = self.newest;
        // A process leads one epoch at a time.
        for led in self.led.values_mut().filter(|led| led.owner == process) {
            led.epoch.leave("the next one begins");
        }
        let led = Led {
            epoch: LeaderEpoch::new(id(self.newest), member(PARTS[0].clone()), self.now),
            owner: process,
            planned: 0,
            done: 0,
            served: false,
            over: false,
        };
        let other = self.led.insert(self.newest, led);
        prop_assert!(other.is_none(), "at most one leader an epoch");
        Ok(())
    }

    fn follow(&mut self, follower: usize, back: u64) {
        let free = self.followed[follower].as_ref().is_none_or(|f| f.over);
        let number = self.newest.saturating_sub(back);
        if !free || number <= self.last[follower] {
            return;
        }
        self.last[follower] = number;
        self.links.push(Link {
            number,
            follower,
            joined: false,
            to_leader: VecDeque::new(),
            to_follower: VecDeque::new(),
            closed: false,
        });
        let ranks = PARTS[follower + 1].clone();
        self.followed[follower] = Some(Followed {
            epoch: FollowerEpoch::new(id(number), member(ranks), self.now),
            link: self.links.len() - 1,
            ran: 0,
            done: 0,
            over: false,
        });
    }

    fn arrive_at_leader(&mut self, back: usize) -> Result<(), TestCaseError> {
        let Some(index) = self.link(back) else {
            return Ok(());
        };
        let link = &mut self.links[index];
        let Some(led) = self.led.get_mut(&link.number) else {
            return Ok(());
        };
        let peer = index as u64;
        let Some((number, frame)) = link.to_leader.pop_front() else {
            if link.closed {
                led.epoch.gone(peer, "closed");
            }
            return Ok(());
        };
        let stage = led.epoch.stage();
        if link.joined {
            led.epoch.frame(self.now, peer, number, frame);
            let lost = led.epoch.stage() == Stage::Lost;
            prop_assert!(
                number == link.number || lost,
                "no frame of an old epoch is accepted"
            );
        } else {
            match led.epoch.join(self.now, peer, number, frame) {
                Ok(()) => {
                    prop_assert_eq!(number, link.number, "no frame of an old epoch is accepted");
                    link.joined = true;
                }
                Err(_) => {
                    prop_assert_eq!(led.epoch.stage(), stage, "a refusal harms nobody");
                    link.closed = true;
                }
            }
        }
        Ok(())
    }

    fn arrive_at_follower(&mut self, back: usize) -> Result<(), TestCaseError> {
        let Some(index) = self.link(back) else {
            return Ok(());
        };
        let link = &mut self.links[index];
        let Some(followed) = &mut self.followed[link.follower] else {
            return Ok(());
        };
        if followed.link != index {
            return Ok(());
        }
        match link.to_follower.pop_front() {
            Some((number, frame)) => {
                followed.epoch.frame(self.now, number, frame);
                let lost = followed.epoch.stage() == Stage::Lost;
                prop_assert!(
                    number == link.number || lost,
                    "no frame of an old epoch is accepted"
                );
            }
            None if link.closed => followed.epoch.gone("closed"),
            None => {}
        }
        Ok(())
    }

    /// Does what leaders and followers ask for, and checks that they may.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for (&number, led) in &mut self.led {
            let actions = led.epoch.take_actions();
            prop_assert!(!led.over || actions.is_empty(), "what is lost stays lost");
            for action in actions {
                match action {
                    LeaderAction::Send(peer, frame) => {
                        let link = &mut self.links[peer as usize];
                        prop_assert_eq!(link.number, number);
                        if !link.closed {
                            link.to_follower.push_back((number, frame));
                        }
                    }
                    LeaderAction::Connect(formation) => {
                        let all: Vec<_> = (0..SIZE).map(|rank| format!("host:{rank}")).collect();
                        prop_assert_eq!(&formation.collective[..], &all[..]);
                        prop_assert_eq!(formation.blocks, 10);
                    }
                    LeaderAction::Serve(blocks) => {
                        prop_assert_eq!(blocks, 10);
                        for follower in 0..2 {
                            let ready = self.were_ready.contains(&(follower, number));
                            prop_assert!(ready, "all ranks form or none");
                        }
                        prop_assert!(!led.served);
                        led.served = true;
                    }
                    LeaderAction::Drain => {}
                    LeaderAction::End(_) => {
                        led.over = true;
                        for link in self.links.iter_mut().filter(|link| link.number == number) {
                            link.closed = true;
                        }
                    }
                }
            }
            prop_assert_eq!(
                led.over,
                led.epoch.stage() == Stage::Lost,
                "what is lost stays lost"
            );
        }
        for followed in self.followed.iter_mut().flatten() {
            let actions = followed.epoch.take_actions();
            prop_assert!(
                !followed.over || actions.is_empty(),
                "what is lost stays lost"
            );
            let number = followed.epoch.id().number;
            for action in actions {
                match action {
                    FollowerAction::Send(frame) => {
                        let link = &mut self.links[followed.link];
                        if !link.closed {
                            link.to_leader.push_back((number, frame));
                        }
                    }
                    FollowerAction::Connect(_) => {}
                    FollowerAction::Run(step) => {
                        prop_assert!(self.led[&number].served, "all ranks form or none");
                        let planner = u64::from(step.samples[0].n);
                        prop_assert_eq!(planner, number, "no frame of an old epoch is accepted");
                        prop_assert_eq!(step.id, followed.ran, "steps run in order");
                        followed.ran += 1;
                    }
                    FollowerAction::Trace(traces) => {
                        prop_assert!(self.led[&number].served, "all ranks form or none");
                        let traced = traces.ended[0].0;
                        prop_assert_eq!(traced, number, "no frame of an old epoch is accepted");
                    }
                    FollowerAction::End(_) => {
                        followed.over = true;
                        self.links[followed.link].closed = true;
                    }
                }
            }
        }
        Ok(())
    }
}

/// An undisturbed life up to the first step; the world may be disturbed from there on.
pub fn formed() -> World {
    let mut world = World::new();
    let ops = [
        Op::Look(0),
        Op::Take(0),
        Op::Follow(0, 0),
        Op::ToLeader(0),
        Op::Follow(1, 0),
        Op::ToLeader(0),
        Op::LeaderConnected(0),
        Op::ToFollower(0),
        Op::ToFollower(1),
        Op::FollowerConnected(0),
        Op::FollowerConnected(1),
        Op::ToLeader(0),
        Op::ToLeader(1),
    ];
    for op in &ops {
        world.run(op).expect("allowed");
    }
    assert_eq!(world.led[&1].epoch.stage(), Stage::Ready);
    world
}
