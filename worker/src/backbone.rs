//! A backbone on a thread of this process: continuous batching over a group of ranks.

mod meter;
mod spans;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as sync_mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};
use tracing::Span;
use xomni_cluster::record::Load;
use xomni_engine::{
    Error, Result,
    group::{StepOutput, ThreadGroup},
    schedule::{AbortReason, Event, Request, RequestId, Scheduler, SchedulerConfig, Step},
};

use self::{meter::JobMeter, spans::JobSpans};
pub use self::{
    meter::{BackboneMeter, Outcome},
    spans::{OutputId, TracedOutput, Traces},
};
use crate::api::{Backbone, GenerateJob, JobStream, TokenFrame, worker_gone};

/// Frames that a slow reader may leave unread before they are merged on this side.
const FRAMES_IN_FLIGHT: usize = 64;
/// How often a slow reader's channel is tried again while nothing else happens.
const FLUSH_INTERVAL: Duration = Duration::from_millis(10);
/// Steps that are planned before the tokens of the first of them are known.
pub const STEPS_AHEAD: usize = 2;
/// Work over which the rate of rows is taken.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// Runs the steps that a scheduler plans, in order.
pub trait StepRunner: Send + 'static {
    /// Gives a step to the ranks; it may run now or later.
    ///
    /// # Errors
    /// [`Error::GroupLost`]; nothing more is run then.
    fn submit(&mut self, step: &Arc<Step>) -> Result<()>;

    /// Tells the ranks whose work the next step begins, and whose has ended. Those that export no
    /// spans need not know.
    ///
    /// # Errors
    /// [`Error::GroupLost`]; nothing more is run then.
    fn trace(&mut self, _traces: Traces) -> Result<()> {
        Ok(())
    }

    /// Waits for the oldest step that was submitted and not collected.
    ///
    /// # Errors
    /// [`Error::GroupLost`]; nothing more is run then.
    fn collect(&mut self) -> Result<StepOutput>;
}

impl StepRunner for ThreadGroup {
    fn submit(&mut self, step: &Arc<Step>) -> Result<()> {
        Self::submit(self, step)
    }

    fn collect(&mut self) -> Result<StepOutput> {
        Self::collect(self)
    }
}

struct Submission {
    job: GenerateJob,
    /// What the job is part of.
    span: Span,
    frames: mpsc::Sender<Result<TokenFrame>>,
    accepted: oneshot::Sender<Result<()>>,
}

enum Message {
    Submit(Box<Submission>),
    Stop,
}

/// A scheduler and the ranks it plans for, on one thread. Dropping it ends what runs with
/// [`Error::GroupLost`] and joins the thread, which takes as long as a step.
#[derive(Debug)]
pub struct LocalBackbone {
    handle: BackboneHandle,
    thread: Option<JoinHandle<()>>,
}

/// Submits jobs to a [`LocalBackbone`] for as long as that lives.
#[derive(Debug, Clone)]
pub struct BackboneHandle {
    messages: sync_mpsc::Sender<Message>,
    load: Arc<Mutex<Load>>,
}

impl LocalBackbone {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] if the system gives no thread.
    pub fn start(config: SchedulerConfig, ranks: impl StepRunner) -> Result<Self> {
        Self::metered(config, ranks, BackboneMeter::default())
    }

    /// Starts the thread, whose jobs `meter` counts.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] if the system gives no thread.
    pub fn metered(
        config: SchedulerConfig,
        ranks: impl StepRunner,
        meter: BackboneMeter,
    ) -> Result<Self> {
        let (messages, inbox) = sync_mpsc::channel();
        let scheduler = Scheduler::new(config);
        let load = Arc::new(Mutex::new(measure(&scheduler, 0, 0.0)));
        let handle = BackboneHandle {
            messages,
            load: load.clone(),
        };
        let service = Service {
            scheduler,
            ranks,
            inbox,
            next_id: 0,
            clients: HashMap::new(),
            load,
            pace: Pace::default(),
            meter,
        };
        let thread = std::thread::Builder::new()
            .name("backbone".into())
            .spawn(move || service.run())
            .map_err(|error| Error::worker_lost("backbone", format!("no thread: {error}")))?;
        Ok(Self {
            handle,
            thread: Some(thread),
        })
    }

    /// Submits jobs from elsewhere.
    pub fn handle(&self) -> BackboneHandle {
        self.handle.clone()
    }
}

impl BackboneHandle {
    /// What the backbone can hold and holds, as of its last step.
    pub fn load(&self) -> Load {
        *lock(&self.load)
    }
}

/// A [`Load`] is valid whatever a panicking holder did.
fn lock(load: &Mutex<Load>) -> MutexGuard<'_, Load> {
    load.lock().unwrap_or_else(PoisonError::into_inner)
}

fn measure(scheduler: &Scheduler, jobs: usize, rate: f64) -> Load {
    let queued = scheduler.load().0;
    let config = scheduler.config();
    Load {
        queue_capacity: config.max_queue as u64,
        queued: queued as u64,
        running: jobs.saturating_sub(queued) as u64,
        backlog: scheduler.backlog_rows() as u64,
        rate,
        kv_blocks: config.blocks as u64,
        kv_blocks_free: scheduler.available().0 as u64,
    }
}

impl Backbone for LocalBackbone {
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>> {
        self.handle.generate(job).await
    }
}

impl Backbone for BackboneHandle {
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>> {
        let (frames, stream) = mpsc::channel(FRAMES_IN_FLIGHT + 1);
        let (accepted, answer) = oneshot::channel();
        let submission = Message::Submit(Box::new(Submission {
            job,
            span: Span::current(),
            frames,
            accepted,
        }));
        let gone = || worker_gone("backbone");
        self.messages.send(submission).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())??;
        Ok(JobStream::new(stream))
    }
}

impl Drop for LocalBackbone {
    fn drop(&mut self) {
        // A thread that has ended needs no message.
        let _ = self.handle.messages.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where a request's tokens go.
struct Client {
    frames: mpsc::Sender<Result<TokenFrame>>,
    /// The place of an error, kept free so that it always arrives.
    last: mpsc::OwnedPermit<Result<TokenFrame>>,
    /// Frames that the channel has no room for yet, at most one an output.
    pending: Vec<TokenFrame>,
    unfinished: usize,
    spans: JobSpans,
    meter: JobMeter,
}

impl Client {
    /// The pending frame that continues `output`.
    fn frame(&mut self, output: usize, first: u32) -> &mut TokenFrame {
        let found = self.pending.iter().position(|frame| frame.output == output);
        let index = found.unwrap_or_else(|| {
            let (tokens, log_probs) = (vec![], vec![]);
            self.pending.push(TokenFrame {
                output,
                first,
                tokens,
                log_probs,
                finished: None,
            });
            self.pending.len() - 1
        });
        &mut self.pending[index]
    }

    /// Hands over what the channel takes; `false` once everything is delivered or unwanted.
    fn flush(&mut self) -> bool {
        while let Some(frame) = self.pending.first() {
            match self.frames.try_send(Ok(frame.clone())) {
                Ok(()) => drop(self.pending.remove(0)),
                Err(mpsc::error::TrySendError::Full(_)) => return true,
                Err(mpsc::error::TrySendError::Closed(_)) => self.pending.clear(),
            }
        }
        // One that nobody reads stays until its request is cancelled.
        self.unfinished > 0
    }

    /// Hands over what the channel takes, then `error`.
    fn fail(mut self, error: Error) {
        self.meter.failed(&error);
        self.flush();
        self.last.send(Err(error));
    }
}

/// Rows run in some time of work.
#[derive(Debug, Default)]
struct Pace {
    rows: usize,
    busy: Duration,
    rate: f64,
}

impl Pace {
    fn add(&mut self, rows: usize, took: Duration) {
        self.rows += rows;
        self.busy += took;
        if self.busy >= RATE_WINDOW {
            self.rate = self.rows as f64 / self.busy.as_secs_f64();
            (self.rows, self.busy) = (0, Duration::ZERO);
        }
    }
}

struct Service<R> {
    scheduler: Scheduler,
    ranks: R,
    inbox: sync_mpsc::Receiver<Message>,
    next_id: RequestId,
    clients: HashMap<RequestId, Client>,
    load: Arc<Mutex<Load>>,
    pace: Pace,
    meter: BackboneMeter,
}

impl<R: StepRunner> Service<R> {
    fn run(mut self) {
        while self.receive() {
            if let Err(error) = self.step() {
                tracing::error!(%error, "the backbone ends");
                self.fail(&error.to_string());
                return;
            }
            *lock(&self.load) = measure(&self.scheduler, self.clients.len(), self.pace.rate);
        }
        self.fail("the backbone has stopped");
    }

    /// Takes new submissions, waiting while there is nothing else to do; `false` at the end.
    fn receive(&mut self) -> bool {
        if self.scheduler.load() == (0, 0) && self.scheduler.steps_in_flight() == 0 {
            let first = if self.clients.is_empty() {
                self.inbox
                    .recv()
                    .map_err(|_| sync_mpsc::RecvTimeoutError::Disconnected)
            } else {
                self.inbox.recv_timeout(FLUSH_INTERVAL)
            };
            match first {
                Ok(Message::Submit(submission)) => self.submit(*submission),
                Err(sync_mpsc::RecvTimeoutError::Timeout) => {}
                Ok(Message::Stop) | Err(sync_mpsc::RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(Message::Submit(submission)) => self.submit(*submission),
                Err(sync_mpsc::TryRecvError::Empty) => return true,
                Ok(Message::Stop) | Err(sync_mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn submit(
        &mut self,
        Submission {
            job,
            span,
            frames,
            accepted,
        }: Submission,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        let Ok(last) = frames.clone().try_reserve_owned() else {
            return; // The caller is gone already.
        };
        let outputs = job.outputs.len();
        let spans = JobSpans::new(id, span, &job.outputs);
        let answer = self.scheduler.submit(request(id, job));
        match &answer {
            Ok(()) => {
                let client = Client {
                    frames,
                    last,
                    pending: vec![],
                    unfinished: outputs,
                    spans,
                    meter: self.meter.job(),
                };
                self.clients.insert(id, client);
            }
            Err(error) => self.meter.refused(error),
        }
        if accepted.send(answer).is_err() {
            self.scheduler.cancel(id);
        }
    }

    /// Drops the requests that nobody waits for, then runs one step.
    fn step(&mut self) -> Result<()> {
        for (&id, client) in &self.clients {
            if client.frames.is_closed() {
                self.scheduler.cancel(id);
            }
        }
        let start = Instant::now();
        let mut rows = 0;
        while self.scheduler.steps_in_flight() < STEPS_AHEAD
            && let Some(step) = self.scheduler.plan(start)
        {
            rows += step.rows.len();
            self.on_events()?;
            self.ranks.submit(&Arc::new(step))?;
        }
        if self.scheduler.steps_in_flight() > 0 {
            let output = self.ranks.collect()?;
            self.scheduler.on_done(output.step, &output.drawn)?;
            self.pace.add(rows, start.elapsed());
        }
        self.on_events()?;
        self.clients.retain(|_, client| client.flush());
        Ok(())
    }

    fn on_events(&mut self) -> Result<()> {
        let mut traces = Traces::default();
        for event in self.scheduler.take_events() {
            self.on_event(event, &mut traces);
        }
        if traces.is_empty() {
            return Ok(());
        }
        self.ranks.trace(traces)
    }

    fn on_event(&mut self, event: Event, traces: &mut Traces) {
        match event {
            Event::Admitted { request, output } => {
                if let Some(client) = self.clients.get_mut(&request) {
                    client.spans.admitted(output, traces);
                }
            }
            Event::Token {
                request,
                output,
                n,
                token,
                log_prob,
            } => {
                let Some(client) = self.clients.get_mut(&request) else {
                    return;
                };
                client.spans.drawn(output);
                client.meter.token();
                let frame = client.frame(output, n);
                frame.tokens.push(token);
                frame.log_probs.extend(log_prob);
            }
            Event::Finished {
                request,
                output,
                reason,
            } => {
                let Some(client) = self.clients.get_mut(&request) else {
                    return;
                };
                client.unfinished -= 1;
                client.spans.finished(output, traces);
                if client.unfinished == 0 {
                    client.meter.done();
                }
                client.frame(output, 0).finished = Some(reason);
            }
            Event::Aborted { request, reason } => {
                let Some(mut client) = self.clients.remove(&request) else {
                    return;
                };
                let error = match reason {
                    AbortReason::Cancelled => Error::Cancelled,
                    AbortReason::Deadline => Error::DeadlineExceeded,
                    AbortReason::NotFinite { output, n } => Error::NotFinite { output, n },
                };
                client.spans.failed(&error, traces);
                client.fail(error);
            }
        }
    }

    /// Ends every request with the reason the group was lost.
    fn fail(&mut self, reason: &str) {
        // The ranks know: their epoch is over.
        let mut traces = Traces::default();
        for (_, mut client) in self.clients.drain() {
            let error = Error::GroupLost(reason.to_owned());
            client.spans.failed(&error, &mut traces);
            client.fail(error);
        }
    }
}

/// A job as the scheduler knows it.
pub(crate) fn request(id: RequestId, job: GenerateJob) -> Request {
    Request {
        id,
        priority: job.priority,
        mode: job.mode,
        prompt: job.prompt,
        negative_prompt: job.negative_prompt,
        sampling: job.sampling,
        seed: job.seed,
        outputs: job.outputs,
        max_tokens: job.max_tokens,
        stop_ids: job.stop_ids,
        deadline: job.deadline,
        log_probs: job.log_probs,
    }
}

#[cfg(test)]
mod tests;
