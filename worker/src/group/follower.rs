//! A process without rank 0: joins the epochs of its group's leader and runs what that plans.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Status, Streaming, transport::Channel};
use xomni_cluster::record::{EpochRecord, WorkerState};
use xomni_engine::{Error, Result, parallel::Abort, schedule::Step};
use xomni_proto::worker::{FollowerFrame, LeaderFrame, ranks_client::RanksClient};

use super::{
    epoch::{FollowerAction, FollowerEpoch, Formation, Stage},
    meter::Given,
    part::Part,
    plan::PlanReader,
    runner::{self, RanksEvent},
    spans::RankSpans,
    store::EpochStore,
    wire,
};
use crate::client::Dialer;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long the leader may take to accept a connection, and to answer the call.
const ACCEPT: Duration = Duration::from_secs(2);
/// From a leader that cannot be reached to the next attempt.
const PAUSE: Duration = Duration::from_millis(200);
/// Frames that the leader may leave unread before it is lost.
const FRAMES: usize = 64;
/// Things that may have happened to the ranks and wait to be looked at.
const EVENTS: usize = 64;

/// Follows the leaders of a group from epoch to epoch.
#[derive(Debug)]
pub struct Follower<S> {
    /// The ranks of this process.
    pub part: Arc<Part>,
    /// Where epochs come from.
    pub store: S,
    /// How leaders are reached.
    pub dialer: Dialer,
    /// How long the leader may take to end the epoch once this process wants to stop.
    pub drain: Duration,
}

/// Why an epoch ended.
enum End {
    /// This process stops.
    Stopped,
    /// The group has to form anew.
    Lost(String),
}

impl<S: EpochStore> Follower<S> {
    /// Follows until `stop` is ready and the group has drained, or is overdue.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) {
        let mut stop = pin!(stop);
        let mut newest = self.store.watch_epoch(&self.part.group);
        let mut last = 0;
        loop {
            self.part.stand(0, WorkerState::Forming);
            let record = tokio::select! {
                record = newer(&mut newest, last) => record,
                () = &mut stop => return,
            };
            let Some(record) = record else {
                return tracing::error!("the epochs of the group can no longer be seen");
            };
            last = record.number;
            let called = tokio::select! {
                called = self.call(&record, &mut newest) => called,
                () = &mut stop => return,
            };
            let end = match called {
                Ok(call) => self.follow(&record, call, &mut newest, stop.as_mut()).await,
                Err(error) => End::Lost(error.to_string()),
            };
            match end {
                End::Stopped => return,
                End::Lost(reason) => {
                    self.part.meter.epoch_lost();
                    tracing::warn!(epoch = last, reason, "epoch lost");
                }
            }
        }
    }
}

/// A call of the leader's service.
struct Call {
    outgoing: mpsc::Sender<FollowerFrame>,
    incoming: Streaming<LeaderFrame>,
}

/// Waits for an epoch after `last`; `None` if there will be none.
async fn newer(
    newest: &mut watch::Receiver<Option<EpochRecord>>,
    last: u64,
) -> Option<EpochRecord> {
    let is_newer = |record: &Option<EpochRecord>| record.as_ref().is_some_and(|r| r.number > last);
    newest.wait_for(is_newer).await.ok()?.clone()
}

async fn dial(dialer: &Dialer, address: &str) -> Result<Call, Status> {
    let unavailable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
    let endpoint = dialer.endpoint(address).map_err(unavailable)?;
    let endpoint = endpoint.connect_timeout(ACCEPT).tcp_nodelay(true);
    let channel: Channel = endpoint.connect().await.map_err(unavailable)?;
    let (outgoing, frames) = mpsc::channel(FRAMES);
    let mut client = RanksClient::new(channel);
    let call = timeout(ACCEPT, client.follow(ReceiverStream::new(frames)));
    let incoming = call
        .await
        .map_err(|_| Status::deadline_exceeded("the leader does not answer"))??
        .into_inner();
    Ok(Call { outgoing, incoming })
}

impl<S: EpochStore> Follower<S> {
    /// Calls the leader of an epoch, again and again until it answers or there is a newer epoch.
    async fn call(
        &self,
        record: &EpochRecord,
        newest: &mut watch::Receiver<Option<EpochRecord>>,
    ) -> Result<Call> {
        loop {
            let error = match dial(&self.dialer, &record.address).await {
                Ok(call) => return Ok(call),
                Err(error) => error,
            };
            tracing::debug!(%error, leader = record.address, "leader not reached");
            if newest
                .borrow()
                .as_ref()
                .is_some_and(|r| r.number > record.number)
            {
                return Err(Error::GroupLost(format!(
                    "its leader at {} was never reached: {}",
                    record.address,
                    error.message()
                )));
            }
            sleep(PAUSE).await;
        }
    }

    /// One epoch, from its record to its end. Nothing of it is left then but the ranks' weights.
    async fn follow(
        &self,
        record: &EpochRecord,
        call: Call,
        newest: &mut watch::Receiver<Option<EpochRecord>>,
        mut stop: Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> End {
        let (id, member, listeners) = match self.part.join(record) {
            Ok(joined) => joined,
            Err(error) => return End::Lost(error.to_string()),
        };
        self.part.stand(id.number, WorkerState::Forming);
        let Call {
            outgoing,
            mut incoming,
        } = call;
        let (sender, mut events) = mpsc::channel(EVENTS);
        let mut life = Life {
            epoch: FollowerEpoch::new(id, member, Instant::now()),
            part: self.part.clone(),
            outgoing,
            plans: None,
            spans: self.part.spans(),
            listeners: Some(listeners),
            events: sender,
            abort: Abort::default(),
            connecting: None,
            collector: None,
        };
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut overdue: Option<Instant> = None;
        let reason = loop {
            if let Some(reason) = life.act() {
                break reason;
            }
            let now = Instant::now();
            tokio::select! {
                frame = incoming.next() => life.on_frame(frame),
                Some(event) = events.recv() => life.on_event(event),
                _ = ticks.tick() => {
                    life.epoch.tick(now);
                    if overdue.is_some_and(|at| now >= at) {
                        life.epoch.leave("the leader did not end the epoch in time");
                    }
                }
                () = &mut stop, if overdue.is_none() => {
                    overdue = Some(now + self.drain);
                    self.part.stand(record.number, WorkerState::Draining);
                    life.epoch.drain(now);
                }
                Ok(()) = newest.changed() => {
                    let newer = newest.borrow_and_update();
                    if newer.as_ref().is_some_and(|newer| newer.number > record.number) {
                        life.epoch.leave("there is a newer epoch");
                    }
                }
            }
        };
        life.abort.abort();
        drop(events);
        life.end().await;
        match overdue {
            Some(_) => End::Stopped,
            None => End::Lost(reason),
        }
    }
}

/// Collects what the ranks of this process draw, for every step that they were given.
struct Collector {
    submitted: mpsc::UnboundedSender<Given>,
    thread: JoinHandle<()>,
}

/// What an epoch holds while it lasts.
struct Life {
    epoch: FollowerEpoch,
    part: Arc<Part>,
    outgoing: mpsc::Sender<FollowerFrame>,
    /// Reads plans, once the group has formed.
    plans: Option<PlanReader>,
    spans: RankSpans,
    /// Taken when the ranks connect.
    listeners: Option<Vec<std::net::TcpListener>>,
    events: mpsc::Sender<RanksEvent>,
    abort: Abort,
    connecting: Option<JoinHandle<()>>,
    collector: Option<Collector>,
}

impl Life {
    fn on_frame(&mut self, frame: Option<Result<LeaderFrame, Status>>) {
        let now = Instant::now();
        match frame {
            Some(Ok(frame)) => match wire::read_leader_frame(frame, self.plans.as_mut()) {
                Ok((number, frame)) => self.epoch.frame(now, number, frame),
                Err(error) => self.epoch.leave(&error.to_string()),
            },
            Some(Err(status)) => self.epoch.gone(status.message()),
            None => self.epoch.gone("the leader closed the stream"),
        }
    }

    fn on_event(&mut self, event: RanksEvent) {
        let now = Instant::now();
        match event {
            RanksEvent::Connected(Ok(())) => {
                self.epoch.connected(now);
                let (epoch, state) = (self.epoch.id().number, WorkerState::Ready);
                tracing::info!(epoch, "joined");
                self.part.standing.send_modify(|standing| {
                    if standing.state == WorkerState::Forming {
                        (standing.epoch, standing.state) = (epoch, state);
                    }
                });
            }
            RanksEvent::Connected(Err(error)) => self.epoch.leave(&error.to_string()),
            RanksEvent::Planned(_) | RanksEvent::Traced(_) => {}
            RanksEvent::Ran { step, hash } => self.epoch.done(now, step, hash),
            RanksEvent::Failed(reason) => self.epoch.leave(&reason),
        }
    }

    /// Does what the epoch asks for; the reason once it is over.
    fn act(&mut self) -> Option<String> {
        for action in self.epoch.take_actions() {
            match action {
                FollowerAction::Send(frame) => {
                    let frame = wire::follower_frame(self.epoch.id().number, frame);
                    if self.outgoing.try_send(frame).is_err() {
                        self.epoch.leave("the leader reads nothing");
                    }
                }
                FollowerAction::Connect(formation) => self.connect(formation),
                FollowerAction::Run(step) => self.run(&step),
                FollowerAction::Trace(traces) => self.spans.change(&traces),
                FollowerAction::End(reason) => {
                    self.abort.abort();
                    return Some(reason);
                }
            }
        }
        // An action that failed has ended the epoch.
        match self.epoch.stage() {
            Stage::Lost => self.act(),
            Stage::Forming | Stage::Joined | Stage::Ready => None,
        }
    }

    fn connect(&mut self, formation: Formation) {
        let limits = self.part.plan_limits(formation.blocks);
        self.plans = Some(PlanReader::new(limits));
        let (part, id) = (self.part.clone(), self.epoch.id().clone());
        let listeners = self.listeners.take().unwrap_or_default();
        let (events, abort) = (self.events.clone(), self.abort.clone());
        self.connecting = Some(tokio::task::spawn_blocking(move || {
            let connected = part.connect(&id, &formation, listeners, &abort);
            // An epoch that is over asks no more.
            let _ = events.blocking_send(RanksEvent::Connected(connected));
        }));
    }

    fn run(&mut self, step: &Arc<Step>) {
        let given = Given::now(step);
        if let Err(error) = self.part.ranks.submit(step) {
            return self.epoch.leave(&error.to_string());
        }
        let (part, events) = (&self.part, &self.events);
        let collector = self
            .collector
            .get_or_insert_with(|| Collector::start(part.clone(), events.clone()));
        if collector.submitted.send(given).is_err() {
            self.epoch.leave("the ranks run nothing more");
        }
    }

    /// Waits for the threads of the epoch, which its abort has freed.
    async fn end(self) {
        if let Some(connecting) = self.connecting {
            // A panic in it was reported by the thread.
            let _ = connecting.await;
        }
        if let Some(Collector { submitted, thread }) = self.collector {
            drop(submitted);
            let _ = thread.await;
        }
    }
}

impl Collector {
    /// The channel holds no more than the steps in flight.
    fn start(part: Arc<Part>, events: mpsc::Sender<RanksEvent>) -> Self {
        let (submitted, mut steps) = mpsc::unbounded_channel();
        let thread = tokio::task::spawn_blocking(move || {
            let mut timer = part.timer();
            while let Some(given) = steps.blocking_recv() {
                let event = match part.ranks.collect() {
                    Ok(output) => {
                        timer.done(&given, &output);
                        RanksEvent::Ran {
                            step: output.step,
                            hash: runner::hash(&output),
                        }
                    }
                    Err(error) => RanksEvent::Failed(error.to_string()),
                };
                let failed = matches!(event, RanksEvent::Failed(_));
                if events.blocking_send(event).is_err() || failed {
                    return;
                }
            }
        });
        Self { submitted, thread }
    }
}
