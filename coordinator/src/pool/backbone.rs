//! All backbone groups of a model as one.

use std::{sync::Arc, time::Instant};

use tokio::sync::mpsc;
use tracing::{Instrument, field};
use xomni_engine::{Error, Result};
use xomni_worker::{
    api::{Backbone, GenerateJob, JobStream, TokenFrame},
    telemetry,
};

use super::{
    Attempt, Connect, Pool, Refusals, Start, attempt::Attempts, ended_early, left, send, stream,
    within,
};
use crate::routing::Stage;

/// Draws tokens on whichever group is soonest through with its work, and continues on another
/// where one fails.
#[derive(Debug)]
pub struct BackbonePool<C> {
    pool: Arc<Pool<C>>,
}

impl<C> BackbonePool<C> {
    /// A backbone over the groups that the pool's router knows.
    pub fn new(pool: Pool<C>) -> Self {
        Self {
            pool: Arc::new(pool),
        }
    }
}

impl<C> Backbone for BackbonePool<C>
where
    C: Connect<Service: Backbone>,
{
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>> {
        let deadline = job.deadline;
        let mut drive = Drive {
            attempts: Attempts::new(job, self.pool.attempts),
            arrived: Instant::now(),
            pool: self.pool.clone(),
        };
        let running = within(deadline, drive.start()).await?;
        let run = |frames| within(deadline, async move { drive.run(running, frames).await });
        Ok(stream(run))
    }
}

/// A job on its way through its attempts.
struct Drive<C> {
    attempts: Attempts,
    arrived: Instant,
    pool: Arc<Pool<C>>,
}

/// An attempt that a worker has taken.
struct Running {
    frames: JobStream<TokenFrame>,
    attempt: Attempt,
}

impl<C> Drive<C>
where
    C: Connect<Service: Backbone>,
{
    /// Makes attempts until a worker takes one.
    async fn start(&mut self) -> Result<Running> {
        let mut refusals = Refusals::default();
        loop {
            let attempt = self.attempts.number();
            let span =
                tracing::info_span!("draw", otel.kind = "client", attempt, worker = field::Empty);
            let assigned = self.pool.assign(
                Stage::Backbone,
                self.attempts.fingerprint(),
                self.attempts.rows(),
                &mut refusals,
                !self.attempts.has_begun(),
            );
            let assigned = assigned.instrument(span.clone()).await;
            let assignment = assigned.inspect_err(|error| telemetry::fail(&span, error))?;
            let worker = assignment.worker();
            span.record("worker", &worker.id);
            let job = self.attempts.next(&worker.fingerprint);
            let service = self.pool.connect.connect(worker);
            let call = service.generate(job).instrument(span.clone());
            let answer = tokio::select! {
                answer = call => Start::of(answer),
                () = assignment.lost() => Start::Failed(left(&assignment)),
            };
            let attempt = Attempt { span, assignment };
            match answer {
                Start::Taken(frames) => return Ok(Running { frames, attempt }),
                Start::Full(error) => refusals.note(attempt, error),
                Start::Failed(error) => self.fail(attempt, error)?,
            }
        }
    }

    async fn run(
        mut self,
        mut running: Running,
        frames: mpsc::Sender<Result<TokenFrame>>,
    ) -> Result<()> {
        loop {
            let span = running.attempt.span.clone();
            let failure = match self.follow(&mut running).instrument(span).await {
                Ok(Some(frame)) => {
                    send(&frames, frame).await?;
                    if self.attempts.is_done() {
                        return Ok(());
                    }
                    continue;
                }
                Ok(None) => continue,
                Err(failure) => failure,
            };
            self.fail(running.attempt, failure)?;
            running = self.start().await?;
        }
    }

    /// What is new in the attempt's next frame.
    async fn follow(&mut self, running: &mut Running) -> Result<Option<TokenFrame>> {
        let assignment = &mut running.attempt.assignment;
        let frame = tokio::select! {
            frame = running.frames.next() => frame?.ok_or_else(ended_early)?,
            () = assignment.lost() => return Err(left(assignment)),
        };
        let first = !self.attempts.has_begun();
        let new = self.attempts.on_frame(frame)?;
        let tokens = new.as_ref().map_or(0, |frame| frame.tokens.len());
        let metrics = &self.pool.metrics;
        metrics.tokens.inc_by(tokens as u64);
        if first && self.attempts.has_begun() {
            let waited = self.arrived.elapsed().as_secs_f64();
            metrics.first_token_seconds.observe(waited);
        }
        let rows = self.attempts.rows_per_token() * tokens as u64;
        assignment.advance(rows);
        Ok(new)
    }

    /// Counts a failed attempt and avoids its worker.
    fn fail(&mut self, attempt: Attempt, error: Error) -> Result<()> {
        let reason = error.to_string();
        telemetry::fail(&attempt.span, &reason);
        self.attempts.on_failure(error)?;
        self.pool.retrying(attempt, &reason);
        Ok(())
    }
}
