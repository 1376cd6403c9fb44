//! All decoders of a model as one encoder.

use tracing::Instrument;
use xomni_engine::{Error, Result, text::Grid};
use xomni_worker::api::{EncodeJob, Encoder};

use super::{Connect, DecoderPool, Refusals, Start, attempt::Budget, left};
use crate::routing::{Assignment, Stage};

/// What reading a picture is to a decoder, in denoising steps.
const WORK: u64 = 1;

/// Reads pictures on whichever decoder is soonest through with its work, and anew on another where
/// one fails.
impl<C> Encoder for DecoderPool<C>
where
    C: Connect<Service: Encoder>,
{
    async fn encode(&self, job: EncodeJob) -> Result<(Grid, Vec<u32>)> {
        let mut refusals = Refusals::default();
        let mut budget = Budget::new(self.pool.attempts);
        let id = &job.request_id;
        loop {
            let assigned = self
                .pool
                .assign(Stage::Decoder, None, WORK, &mut refusals, false);
            let assignment = assigned.await?;
            let (worker, attempt) = (assignment.worker(), budget.failures());
            let span =
                tracing::info_span!("encode", request_id = %id, worker = %worker.id, attempt);
            let service = self.pool.connect.connect(worker);
            let call = service.encode(job.clone()).instrument(span);
            let answer = tokio::select! {
                answer = call => Start::of(answer),
                () = assignment.lost() => Start::Failed(left(&assignment)),
            };
            match answer {
                Start::Taken(picture) => return Ok(picture),
                Start::Full(error) => refusals.note(&assignment, error),
                Start::Failed(error) => self.fail(&mut budget, id, assignment, error)?,
            }
        }
    }
}

impl<C: Connect> DecoderPool<C> {
    /// Counts a failed attempt and avoids its decoder.
    fn fail(
        &self,
        budget: &mut Budget,
        request_id: &str,
        assignment: Assignment,
        error: Error,
    ) -> Result<()> {
        let reason = error.to_string();
        budget.spend(error)?;
        self.pool.retrying(request_id, assignment, &reason);
        Ok(())
    }
}
