//! The process with rank 0: takes epochs, gathers the other processes, plans for all of them.

mod peers;

use std::{
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};
use xomni_cluster::record::{EpochRecord, Load, WorkerState};
use xomni_engine::{Error, Result, parallel::Abort, schedule::SchedulerConfig};

use self::peers::{PeerEvent, Peers};
use super::{
    epoch::{Formation, LeaderAction, LeaderEpoch, Stage},
    part::Part,
    runner::{EpochRunner, RanksEvent},
    store::EpochStore,
};
use crate::{
    backbone::{BackboneHandle, BackboneMeter, LocalBackbone},
    convert::Standing,
};

pub use self::peers::{Arrival, RanksService};

/// How often deadlines are looked at and the load is refreshed.
const TICK: Duration = Duration::from_millis(100);
/// Ticks in a row without work after which a draining group is done.
const IDLE_TICKS: u32 = 2;
/// From a lost epoch, or a store that does not answer, to the next attempt.
const PAUSE: Duration = Duration::from_millis(200);
/// Things that may have happened in an epoch and wait to be looked at.
const EVENTS: usize = 256;
/// Connections that may wait for the next epoch to begin.
const ARRIVALS: usize = 32;

/// Leads a group from epoch to epoch.
#[derive(Debug)]
pub struct Leader<S> {
    /// The ranks of this process.
    pub part: Arc<Part>,
    /// Names the process in epoch records.
    pub id: String,
    /// `host:port` of its gRPC services, which serve already.
    pub address: String,
    /// Where epochs come from.
    pub store: S,
    /// Limits of the scheduler, but for the number of K/V blocks.
    pub scheduler: SchedulerConfig,
    /// What is served now.
    pub serving: watch::Sender<Option<BackboneHandle>>,
    /// How long running jobs may take once the group drains.
    pub drain: Duration,
    /// Counts the jobs.
    pub meter: BackboneMeter,
    /// Connections of followers.
    pub arrivals: mpsc::Receiver<Arrival>,
}

/// The service that followers call, and its connections for [`Leader::arrivals`].
pub fn ranks_service() -> (RanksService, mpsc::Receiver<Arrival>) {
    let (sender, arrivals) = mpsc::channel(ARRIVALS);
    (RanksService::new(sender), arrivals)
}

/// Why an epoch ended.
enum End {
    /// This process stops.
    Stopped,
    /// The group has to form anew.
    Lost(String),
    /// Another process leads the group.
    Superseded(EpochRecord),
}

#[derive(Debug)]
enum Event {
    Ranks(RanksEvent),
    Peer(PeerEvent),
}

impl From<RanksEvent> for Event {
    fn from(event: RanksEvent) -> Self {
        Self::Ranks(event)
    }
}

impl<S: EpochStore> Leader<S> {
    /// Leads until `stop` is ready and the jobs that run then are done, or overdue.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if another process has taken the group over.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<()> {
        let mut stop = pin!(stop);
        let mut newest = self.store.watch_epoch(&self.part.group);
        loop {
            self.part.stand(0, WorkerState::Forming);
            let record = tokio::select! {
                record = self.take_epoch() => record,
                () = &mut stop => return Ok(()),
            };
            let number = record.number;
            match self.lead(&record, &mut newest, stop.as_mut()).await {
                End::Stopped => return Ok(()),
                End::Lost(reason) => {
                    self.part.meter.epoch_lost();
                    tracing::warn!(epoch = number, reason, "epoch lost");
                }
                End::Superseded(by) => {
                    let EpochRecord { number, leader, .. } = by;
                    let reason = format!("{leader} leads it since epoch {number}");
                    return Err(Error::GroupLost(reason));
                }
            }
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = &mut stop => return Ok(()),
            }
        }
    }

    async fn take_epoch(&self) -> EpochRecord {
        let (group, size) = (&self.part.group, self.part.size);
        loop {
            let taken = self.store.next_epoch(group, &self.id, &self.address, size);
            match taken.await {
                Ok(record) => return record,
                Err(error) => tracing::warn!(%error, group, "no epoch yet"),
            }
            sleep(5 * PAUSE).await;
        }
    }

    /// One epoch, from its record to its end. Nothing of it is left then but the ranks' weights.
    async fn lead(
        &mut self,
        record: &EpochRecord,
        newest: &mut watch::Receiver<Option<EpochRecord>>,
        mut stop: Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> End {
        let (id, member, listeners) = match self.part.join(record) {
            Ok(joined) => joined,
            Err(error) => return End::Lost(error.to_string()),
        };
        self.part.stand(id.number, WorkerState::Forming);
        let (sender, mut events) = mpsc::channel(EVENTS);
        let mut life = Life {
            epoch: LeaderEpoch::new(id, member, Instant::now()),
            peers: Peers::new(record.number, sender.clone()),
            listeners: Some(listeners),
            events: sender,
            abort: Abort::default(),
            connecting: None,
            backbone: None,
            drain: None,
        };
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = false;
        let end = loop {
            if let Some(reason) = self.act(&mut life) {
                break match stopping {
                    true => End::Stopped,
                    false => End::Lost(reason),
                };
            }
            tokio::select! {
                Some(arrival) = self.arrivals.recv() => life.peers.arrive(arrival),
                Some(event) = events.recv() => life.on_event(event),
                _ = ticks.tick() => self.tick(&mut life),
                () = &mut stop, if !stopping => {
                    stopping = true;
                    self.begin_drain(&mut life);
                }
                Ok(()) = newest.changed() => {
                    let newer = newest.borrow_and_update().clone();
                    if let Some(newer) = newer.filter(|newer| newer.number > record.number) {
                        life.epoch.leave("there is a newer epoch");
                        if newer.leader != self.id {
                            self.act(&mut life);
                            break End::Superseded(newer);
                        }
                    }
                }
            }
        };
        self.serving.send_replace(None);
        life.abort.abort();
        drop(events);
        life.end().await;
        end
    }

    /// Does what the epoch asks for; the reason once it is over.
    fn act(&self, life: &mut Life) -> Option<String> {
        for action in life.epoch.take_actions() {
            match action {
                LeaderAction::Send(peer, frame) => life.peers.send(peer, frame),
                LeaderAction::Connect(formation) => life.connect(&self.part, formation),
                LeaderAction::Serve(blocks) => self.serve(life, blocks),
                LeaderAction::Drain => self.begin_drain(life),
                LeaderAction::End(reason) => {
                    // First of all, so that nothing waits for what will not come.
                    life.abort.abort();
                    self.serving.send_replace(None);
                    self.part
                        .stand(life.epoch.id().number, WorkerState::Forming);
                    return Some(reason);
                }
            }
        }
        None
    }

    fn serve(&self, life: &mut Life, blocks: u32) {
        let config = SchedulerConfig {
            blocks: blocks as usize,
            ..self.scheduler
        };
        let runner = EpochRunner {
            ranks: self.part.ranks.clone(),
            spans: self.part.spans(),
            events: life.events.clone(),
            abort: life.abort.clone(),
            timer: self.part.timer(),
            given: VecDeque::new(),
        };
        match LocalBackbone::metered(config, runner, self.meter.clone()) {
            Ok(backbone) => {
                let epoch = life.epoch.id().number;
                tracing::info!(epoch, blocks, "group ready");
                if life.drain.is_none() {
                    self.serving.send_replace(Some(backbone.handle()));
                    let (state, load) = (WorkerState::Ready, backbone.handle().load());
                    self.part
                        .standing
                        .send_replace(Standing { epoch, state, load });
                }
                life.backbone = Some(backbone);
            }
            Err(error) => life.epoch.leave(&error.to_string()),
        }
    }

    /// Takes no more jobs; [`Leader::tick`] ends the epoch when those that run are done.
    fn begin_drain(&self, life: &mut Life) {
        if life.epoch.stage() != Stage::Ready {
            return life.epoch.leave("the group drains");
        }
        self.serving.send_replace(None);
        let epoch = life.epoch.id().number;
        let load = life.load();
        let state = WorkerState::Draining;
        self.part
            .standing
            .send_replace(Standing { epoch, state, load });
        life.drain.get_or_insert(Drain {
            overdue: Instant::now() + self.drain,
            idle: 0,
        });
    }

    fn tick(&self, life: &mut Life) {
        let now = Instant::now();
        life.epoch.tick(now);
        if life.epoch.stage() != Stage::Ready {
            return;
        }
        let load = life.load();
        self.part.standing.send_if_modified(|standing| {
            let changed = standing.load != load;
            standing.load = load;
            changed
        });
        if let Some(drain) = &mut life.drain {
            let idle = load.queued + load.running == 0;
            drain.idle = if idle { drain.idle + 1 } else { 0 };
            if drain.idle >= IDLE_TICKS || now >= drain.overdue {
                life.epoch.leave("the group has drained");
            }
        }
    }
}

struct Drain {
    overdue: Instant,
    /// Ticks in a row without work.
    idle: u32,
}

/// What an epoch holds while it lasts.
struct Life {
    epoch: LeaderEpoch,
    peers: Peers<Event>,
    /// Taken when the ranks connect.
    listeners: Option<Vec<std::net::TcpListener>>,
    events: mpsc::Sender<Event>,
    abort: Abort,
    connecting: Option<JoinHandle<()>>,
    backbone: Option<LocalBackbone>,
    drain: Option<Drain>,
}

impl From<PeerEvent> for Event {
    fn from(event: PeerEvent) -> Self {
        Self::Peer(event)
    }
}

impl Life {
    fn connect(&mut self, part: &Arc<Part>, formation: Formation) {
        let (part, id) = (part.clone(), self.epoch.id().clone());
        let listeners = self.listeners.take().unwrap_or_default();
        let (events, abort) = (self.events.clone(), self.abort.clone());
        self.connecting = Some(tokio::task::spawn_blocking(move || {
            let connected = part.connect(&id, &formation, listeners, &abort);
            // An epoch that is over asks no more.
            let _ = events.blocking_send(RanksEvent::Connected(connected).into());
        }));
    }

    fn on_event(&mut self, event: Event) {
        let now = Instant::now();
        let epoch = &mut self.epoch;
        match event {
            Event::Ranks(RanksEvent::Connected(Ok(()))) => epoch.connected(),
            Event::Ranks(RanksEvent::Connected(Err(error))) => epoch.leave(&error.to_string()),
            Event::Ranks(RanksEvent::Planned(step)) => epoch.plan(now, &step),
            Event::Ranks(RanksEvent::Traced(traces)) => epoch.trace(traces),
            Event::Ranks(RanksEvent::Ran { step, hash }) => epoch.own_done(now, step, hash),
            Event::Ranks(RanksEvent::Failed(reason)) => epoch.leave(&reason),
            Event::Peer(event) => self.peers.on_event(event, epoch, now),
        }
    }

    fn load(&self) -> Load {
        let handle = self.backbone.as_ref().map(LocalBackbone::handle);
        handle.map_or_else(Load::default, |handle| handle.load())
    }

    /// Waits for the threads of the epoch, which its abort has freed.
    async fn end(self) {
        drop(self.peers);
        if let Some(connecting) = self.connecting {
            // A panic in it was reported by the thread.
            let _ = connecting.await;
        }
        let stopped = tokio::task::spawn_blocking(move || drop(self.backbone));
        let _ = stopped.await;
    }
}
