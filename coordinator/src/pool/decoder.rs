//! All decoders of a model as one.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument, field};
use xomni_engine::{Error, Result};
use xomni_worker::{
    api::{DecodeEvent, DecodeJob, Decoder, JobStream, Progress},
    telemetry,
};

use super::{
    Attempt, Connect, Pool, Refusals, Start, attempt::Budget, ended_early, left, send, stream,
};
use crate::routing::Stage;

/// Develops pictures on whichever decoder is soonest through with its work, and anew on another
/// where one fails.
#[derive(Debug)]
pub struct DecoderPool<C> {
    pub(super) pool: Arc<Pool<C>>,
    steps: usize,
}

impl<C> DecoderPool<C> {
    /// A decoder over those that the pool's router knows; `steps` is the checkpoint's number of
    /// denoising steps.
    pub fn new(pool: Pool<C>, steps: usize) -> Self {
        Self {
            pool: Arc::new(pool),
            steps,
        }
    }
}

impl<C> Decoder for DecoderPool<C>
where
    C: Connect<Service: Decoder>,
{
    async fn decode(
        &self,
        job: DecodeJob,
        codes: oneshot::Receiver<Vec<u32>>,
    ) -> Result<JobStream<DecodeEvent>> {
        let mut drive = Drive {
            work: job.steps.unwrap_or(self.steps) as u64,
            job,
            codes: Codes::Awaited(codes),
            furthest: None,
            budget: Budget::new(self.pool.attempts),
            pool: self.pool.clone(),
        };
        let running = drive.start().await?;
        Ok(stream(|events| drive.run(running, events)))
    }
}

/// The codes of a picture, kept for every attempt.
enum Codes {
    Awaited(oneshot::Receiver<Vec<u32>>),
    Known(Vec<u32>),
}

/// A job on its way through its attempts.
struct Drive<C> {
    job: DecodeJob,
    /// Denoising steps.
    work: u64,
    codes: Codes,
    /// The part that the reader has seen begin last.
    furthest: Option<(u8, usize)>,
    budget: Budget,
    pool: Arc<Pool<C>>,
}

/// An attempt that a decoder has taken.
struct Running {
    events: JobStream<DecodeEvent>,
    /// Where its codes go, until they have.
    tokens: Option<oneshot::Sender<Vec<u32>>>,
    attempt: Attempt,
}

impl<C> Drive<C>
where
    C: Connect<Service: Decoder>,
{
    /// Makes attempts until a decoder takes one.
    async fn start(&mut self) -> Result<Running> {
        let mut refusals = Refusals::default();
        loop {
            let attempt = self.job.attempt + self.budget.failures();
            let span = tracing::info_span!(
                "develop",
                otel.kind = "client",
                image = self.job.image_index,
                attempt,
                worker = field::Empty
            );
            // Nothing of a picture is delivered before all of it is: any numerics will do.
            let assigned = self
                .pool
                .assign(Stage::Decoder, None, self.work, &mut refusals, false);
            let assigned = assigned.instrument(span.clone()).await;
            let assignment = assigned.inspect_err(|error| telemetry::fail(&span, error))?;
            let worker = assignment.worker();
            span.record("worker", &worker.id);
            let job = DecodeJob {
                attempt,
                ..self.job.clone()
            };
            let (tokens, forwarded) = oneshot::channel();
            let service = self.pool.connect.connect(worker);
            let call = service.decode(job, forwarded).instrument(span.clone());
            let answer = tokio::select! {
                answer = call => Start::of(answer),
                () = assignment.lost() => Start::Failed(left(&assignment)),
            };
            let attempt = Attempt { span, assignment };
            match answer {
                Start::Taken(events) => {
                    return Ok(Running {
                        events,
                        tokens: Some(tokens),
                        attempt,
                    });
                }
                Start::Full(error) => refusals.note(attempt, error),
                Start::Failed(error) => self.fail(attempt, error)?,
            }
        }
    }

    async fn run(
        mut self,
        mut running: Running,
        events: mpsc::Sender<Result<DecodeEvent>>,
    ) -> Result<()> {
        loop {
            let span = running.attempt.span.clone();
            match self.follow(&mut running).instrument(span).await {
                Ok(DecodeEvent::Progress(part)) => {
                    if matches!(part, Progress::Denoise { .. }) {
                        running.attempt.assignment.advance(1);
                    }
                    // Another attempt repeats what the reader has seen.
                    if self.furthest < Some(place(part)) {
                        self.furthest = Some(place(part));
                        send(&events, DecodeEvent::Progress(part)).await?;
                    }
                }
                Ok(picture @ DecodeEvent::Png(_)) => return send(&events, picture).await,
                Err(failure) => {
                    self.fail(running.attempt, failure)?;
                    running = self.start().await?;
                }
            }
        }
    }

    /// The next event of an attempt, after passing it the codes as soon as they are known.
    async fn follow(&mut self, running: &mut Running) -> Result<DecodeEvent> {
        let assignment = &running.attempt.assignment;
        loop {
            if let Codes::Known(codes) = &self.codes
                && let Some(tokens) = running.tokens.take()
            {
                // A decoder that is gone says so in its events.
                let _ = tokens.send(codes.clone());
            }
            let codes = async {
                match &mut self.codes {
                    Codes::Awaited(codes) => codes.await,
                    Codes::Known(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                event = running.events.next() => return event?.ok_or_else(ended_early),
                () = assignment.lost() => return Err(left(assignment)),
                codes = codes => {
                    self.codes = Codes::Known(codes.map_err(|_| Error::Cancelled)?);
                }
            }
        }
    }

    /// Counts a failed attempt and avoids its decoder.
    fn fail(&mut self, attempt: Attempt, error: Error) -> Result<()> {
        let reason = error.to_string();
        telemetry::fail(&attempt.span, &reason);
        self.budget.spend(error)?;
        self.pool.retrying(attempt, &reason);
        Ok(())
    }
}

/// Orders the parts of a decoding.
fn place(part: Progress) -> (u8, usize) {
    match part {
        Progress::Encode => (0, 0),
        Progress::Denoise { step, .. } => (1, step),
        Progress::Vae => (2, 0),
    }
}
