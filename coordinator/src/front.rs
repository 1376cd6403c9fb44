//! What clients reach. [`Front`] is the way of every call, by whatever protocol: checked, admitted,
//! worked on and counted; [`grpc`] and [`http`] read requests and write answers.

pub mod access;
pub mod call;
pub mod caller;
pub mod chat;
pub mod cluster;
pub mod failure;
pub mod grpc;
pub mod http;
pub mod progress;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tracing::Instrument;
use xomni_engine::{Error, Result};
use xomni_worker::api::{Backbone, Decoder};

use self::{
    access::Held,
    call::{Call, Calls, Phase},
    caller::Caller,
    failure::Failure,
    progress::Progress,
};
use crate::{
    admission::{Demand, Gate, Waiting},
    metrics::Metrics,
    pipeline::{ImageEvent, Pipeline},
    request::{ChatModel, ImageJob, ImageRequest, Limits},
    routing::{Router, Stage},
    uploads::Uploads,
};

/// Events that a slow client may leave unread before its work waits.
const EVENTS: usize = 64;

/// What calls go through.
#[derive(Debug)]
pub struct Front<B, D> {
    /// Name of the served model.
    pub model: String,
    /// What it can draw.
    pub limits: Limits,
    /// What it makes of chats.
    pub chat: Arc<ChatModel>,
    /// What clients have uploaded.
    pub uploads: Uploads,
    /// Longest that a request may take.
    pub timeout: Duration,
    /// Draws.
    pub pipeline: Pipeline<B, D>,
    /// Bounds what is worked on at once.
    pub gate: Gate,
    /// Knows who can work.
    pub router: Router,
    /// Counts calls and ends them.
    pub calls: Calls,
    /// Whether work goes on.
    pub progress: Progress,
    /// Counts everything else.
    pub metrics: Metrics,
}

/// What happens to a call that was taken.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<E> {
    /// It is admitted: its work begins.
    Started,
    /// Its work got on.
    Work(E),
}

/// The events of a call, which ends with the first failure. Dropping it ends the call's work.
pub type Events<E> = ReceiverStream<Result<Event<E>, Failure>>;

/// A request for pictures that was taken.
#[derive(Debug)]
pub struct Drawing {
    /// The request as it runs.
    pub job: ImageJob,
    /// What happens to it.
    pub events: Events<ImageEvent>,
}

impl<B: Backbone, D: Decoder> Front<B, D> {
    /// Checks a request for pictures and has it drawn as soon as it is admitted.
    ///
    /// # Errors
    /// What is wrong with it, or why it cannot be taken now.
    pub fn draw(
        self: &Arc<Self>,
        request: ImageRequest,
        caller: Caller,
    ) -> Result<Drawing, Failure> {
        let call = self.calls.begin();
        let admitted = caller.span.in_scope(|| self.admit(request, &caller));
        let (job, waiting, held) = match admitted {
            Ok(admitted) => admitted,
            Err(failure) => return Err(caller.span.in_scope(|| call.refuse(failure))),
        };
        let (front, drawn) = (self.clone(), job.clone());
        let work = |events| async move {
            let _held = held;
            front.pipeline.draw(drawn, events).await
        };
        let events = self.run(call, waiting, job.deadline, caller, work);
        Ok(Drawing { job, events })
    }

    /// Counts a call, that of the current span, which is refused before its request is known.
    pub fn refuse(&self, failure: Failure) -> Failure {
        self.calls.begin().refuse(failure)
    }

    /// Validates a request for pictures and takes it or has it wait.
    fn admit(
        &self,
        request: ImageRequest,
        caller: &Caller,
    ) -> Result<(ImageJob, Waiting, Option<Held>), Failure> {
        self.serving()?;
        let mut job = request.validate(&self.limits)?;
        job.deadline = self.deadline(caller);
        job.priority = caller.pass.priority(job.priority);
        if let Some(id) = &caller.request_id {
            job.request_id.clone_from(id);
        }
        caller.span.record("request_id", &job.request_id);
        self.ready(&[Stage::Backbone, Stage::Decoder])?;
        let held = caller.pass.hold(job.n, self.retry_after())?;
        let waiting = self.enter(Demand {
            tenant: caller.tenant().to_owned(),
            priority: job.priority,
            cost: job.cost(),
            deadline: job.deadline,
        })?;
        // Last, so that only what is taken counts.
        caller.pass.count()?;
        Ok((job, waiting, held))
    }

    /// Whether calls are taken.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] once the process drains.
    pub fn serving(&self) -> Result<(), Failure> {
        match self.calls.phase() {
            Phase::Serving => Ok(()),
            Phase::Draining | Phase::Ended => Err(Failure::Unavailable("the coordinator drains")),
        }
    }

    /// Whether there is a worker of each of these stages.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] naming the first that is missing.
    pub fn ready(&self, stages: &[Stage]) -> Result<(), Failure> {
        for stage in stages {
            if self.router.ready(*stage, &self.model) == 0 {
                return Err(Failure::Unavailable(match stage {
                    Stage::Backbone => "no backbone is ready",
                    Stage::Decoder => "no decoder is ready",
                }));
            }
        }
        Ok(())
    }

    /// When a call that begins now is given up: as its caller says, at the latest as this front
    /// allows.
    pub fn deadline(&self, caller: &Caller) -> Option<Instant> {
        let latest = Instant::now().checked_add(self.timeout);
        caller.deadline.into_iter().chain(latest).min()
    }

    /// Takes a demand or has it wait.
    ///
    /// # Errors
    /// [`Failure::Busy`] where neither is possible.
    pub fn enter(&self, demand: Demand) -> Result<Waiting, Failure> {
        self.gate.enter(demand).map_err(|error| self.failed(error))
    }

    /// Has a call's work done once it is admitted, in a task that ends with the stream.
    pub fn run<E, W>(
        self: &Arc<Self>,
        call: Call,
        waiting: Waiting,
        deadline: Option<Instant>,
        caller: Caller,
        work: impl FnOnce(mpsc::Sender<E>) -> W + Send + 'static,
    ) -> Events<E>
    where
        E: Counted + Send + 'static,
        W: Future<Output = Result<()>> + Send + 'static,
    {
        let (events, stream) = mpsc::channel(EVENTS);
        let front = self.clone();
        let task = async move {
            let worked = front.work(&call, waiting, work, &events);
            let result = tokio::select! {
                biased;
                () = events.closed() => Err(Error::Cancelled.into()),
                () = front.calls.ended() => Err(Failure::Unavailable("the coordinator ends")),
                () = until(deadline) => Err(Error::DeadlineExceeded.into()),
                worked = worked => worked.map_err(|error| front.failed(error)),
            };
            call.end(result.as_ref().map_or_else(Failure::code, |()| Code::Ok));
            if let Err(failure) = result {
                failure.report();
                // A client that is gone needs no reason.
                let _ = events.send(Err(failure)).await;
            }
        };
        tokio::spawn(task.instrument(caller.span));
        ReceiverStream::new(stream)
    }

    async fn work<E, W>(
        &self,
        call: &Call,
        waiting: Waiting,
        work: impl FnOnce(mpsc::Sender<E>) -> W,
        events: &mpsc::Sender<Result<Event<E>, Failure>>,
    ) -> Result<()>
    where
        E: Counted,
        W: Future<Output = Result<()>>,
    {
        let admission = tracing::info_span!("admission");
        let permit = waiting.permit().instrument(admission).await?;
        let waited = call.start().elapsed();
        self.metrics.queue_seconds.observe(waited.as_secs_f64());
        self.progress.advance();
        send(events, Event::Started).await?;
        let (sender, mut worked) = mpsc::channel::<E>(EVENTS);
        let forward = async {
            while let Some(event) = worked.recv().await {
                self.progress.advance();
                let pictures = event.pictures();
                send(events, Event::Work(event)).await?;
                self.metrics.images.inc_by(pictures);
            }
            Ok(())
        };
        tokio::try_join!(work(sender), forward)?;
        permit.complete();
        Ok(())
    }

    fn failed(&self, error: Error) -> Failure {
        match error {
            Error::Capacity { retry_after, .. } => Failure::Busy {
                error,
                retry_after: retry_after.unwrap_or_else(|| self.retry_after()),
            },
            error => Failure::Job(error),
        }
    }

    /// When one that is refused for want of room should come again.
    fn retry_after(&self) -> Duration {
        let rate = self.router.rate(Stage::Backbone, &self.model);
        self.gate.retry_after(rate)
    }
}

/// What an event of a call's work is counted as.
pub trait Counted {
    /// Pictures that it delivers.
    fn pictures(&self) -> u64;
}

impl Counted for ImageEvent {
    fn pictures(&self) -> u64 {
        u64::from(matches!(self, Self::Done(_)))
    }
}

async fn send<E>(events: &mpsc::Sender<Result<Event<E>, Failure>>, event: Event<E>) -> Result<()> {
    events.send(Ok(event)).await.map_err(|_| Error::Cancelled)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
