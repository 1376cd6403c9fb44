//! All workers of a model as one backbone, one decoder and one encoder: jobs are routed, and move to another
//! worker when theirs fails. Whoever reads a job's stream sees a pause and then the same tokens.

pub mod attempt;
mod backbone;
pub mod connect;
mod decoder;
mod encoder;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::{Instrument, Span};
use xomni_cluster::record::WorkerRecord;
use xomni_engine::{Error, Result};
use xomni_worker::{api::JobStream, telemetry};

use crate::{
    metrics::Metrics,
    routing::{Assignment, Life, Need, Router, Stage},
};

pub use backbone::BackbonePool;
pub use decoder::DecoderPool;

/// Attempts at a job unless configured otherwise.
pub const ATTEMPTS: u32 = 8;
/// How long a job that has begun waits if every worker has refused it.
const FULL: Duration = Duration::from_millis(200);
/// Events that a slow reader may leave unread.
const EVENTS: usize = 64;

/// Reaches workers.
pub trait Connect: Send + Sync + 'static {
    /// A worker as this process calls it.
    type Service: Send + Sync + 'static;

    /// A client of the worker with this record. It need not be reachable.
    fn connect(&self, worker: &WorkerRecord) -> Self::Service;
}

/// What the jobs of a pool share.
#[derive(Debug)]
pub struct Pool<C> {
    /// The model that jobs are for.
    pub model: String,
    /// Knows the workers.
    pub router: Router,
    /// Reaches them.
    pub connect: C,
    /// Attempts at a job.
    pub attempts: u32,
    /// Counts retries.
    pub metrics: Metrics,
}

/// A worker's answer to an attempt.
enum Start<T> {
    /// It has taken the job.
    Taken(T),
    /// It has no room; another may have.
    Full(Error),
    /// It failed.
    Failed(Error),
}

impl<T> Start<T> {
    fn of(answer: Result<T>) -> Self {
        match answer {
            Ok(taken) => Self::Taken(taken),
            Err(error @ Error::Capacity { .. }) => Self::Full(error),
            Err(error) => Self::Failed(error),
        }
    }
}

/// An attempt that a worker has been given.
#[derive(Debug)]
struct Attempt {
    /// From the wait for a worker to the attempt's last event.
    span: Span,
    assignment: Assignment,
}

/// The workers that have refused a job since it last waited.
#[derive(Debug, Default)]
struct Refusals {
    by: Vec<Life>,
    /// That of the worker which will have room first, as far as they say.
    soonest: Option<Error>,
}

/// When a refused job may come back; those that do not say come last.
fn retry_after(refusal: &Error) -> Duration {
    match refusal {
        Error::Capacity {
            retry_after: Some(after),
            ..
        } => *after,
        _ => Duration::MAX,
    }
}

impl Refusals {
    fn note(&mut self, attempt: Attempt, error: Error) {
        telemetry::fail(&attempt.span, &error);
        self.by.push(attempt.assignment.life().clone());
        let sooner = |soonest: &Error| retry_after(&error) < retry_after(soonest);
        if self.soonest.as_ref().is_none_or(sooner) {
            self.soonest = Some(error);
        }
    }
}

impl<C: Connect> Pool<C> {
    /// Gives the job to a worker, waiting for one.
    ///
    /// # Errors
    /// The refusal that ends first, if everyone has refused a job that `may_be_refused`.
    async fn assign(
        &self,
        stage: Stage,
        fingerprint: Option<&str>,
        work: u64,
        refusals: &mut Refusals,
        may_be_refused: bool,
    ) -> Result<Assignment> {
        loop {
            let need = Need {
                stage,
                model: &self.model,
                fingerprint,
                refused: &refusals.by,
            };
            let Some(soonest) = refusals.soonest.take() else {
                return Ok(self.router.assign(need, work).await);
            };
            if let Some(assignment) = self.router.try_assign(need, work) {
                refusals.soonest = Some(soonest);
                return Ok(assignment);
            }
            if may_be_refused {
                return Err(soonest);
            }
            refusals.by.clear();
            tokio::time::sleep(FULL).await;
        }
    }

    /// Has a job go on after an attempt that failed.
    fn retrying(&self, attempt: Attempt, reason: &str) {
        let Attempt { span, assignment } = attempt;
        self.metrics.retries(assignment.stage()).inc();
        span.in_scope(|| tracing::warn!(reason, "attempt failed, another follows"));
        assignment.fail();
    }
}

/// A stream that `drive` feeds until its reader is gone.
fn stream<T, F>(drive: impl FnOnce(mpsc::Sender<Result<T>>) -> F) -> JobStream<T>
where
    T: Send + 'static,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (events, stream) = mpsc::channel(EVENTS);
    let driven = drive(events.clone());
    let task = async move {
        tokio::select! {
            biased;
            () = events.closed() => {}
            result = driven => if let Err(error) = result {
                // A reader that is gone needs no reason.
                let _ = events.send(Err(error)).await;
            },
        }
    };
    tokio::spawn(task.in_current_span());
    JobStream::new(stream)
}

async fn send<T>(events: &mpsc::Sender<Result<T>>, event: T) -> Result<()> {
    events.send(Ok(event)).await.map_err(|_| Error::Cancelled)
}

/// `work`, until the deadline.
async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = Result<T>>) -> Result<T> {
    match deadline {
        Some(at) => tokio::time::timeout_at(at.into(), work)
            .await
            .unwrap_or(Err(Error::DeadlineExceeded)),
        None => work.await,
    }
}

fn left(assignment: &Assignment) -> Error {
    let worker = &assignment.worker().id;
    Error::worker_lost("worker", format!("{worker} has left, or has another epoch"))
}

fn ended_early() -> Error {
    Error::worker_lost("worker", "the stream ended before its last event")
}
