//! All decoders of a model as one encoder.

use tracing::{Instrument, field};
use xomni_engine::{Result, text::Grid};
use xomni_worker::{
    api::{EncodeJob, Encoder},
    telemetry,
};

use super::{Attempt, Connect, DecoderPool, Refusals, Start, attempt::Budget, left};
use crate::routing::Stage;

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
        loop {
            let attempt = budget.failures();
            let span = tracing::info_span!(
                "encode",
                otel.kind = "client",
                attempt,
                worker = field::Empty
            );
            let assigned = self
                .pool
                .assign(Stage::Decoder, None, WORK, &mut refusals, false);
            let assigned = assigned.instrument(span.clone()).await;
            let assignment = assigned.inspect_err(|error| telemetry::fail(&span, error))?;
            let worker = assignment.worker();
            span.record("worker", &worker.id);
            let service = self.pool.connect.connect(worker);
            let call = service.encode(job.clone()).instrument(span.clone());
            let answer = tokio::select! {
                answer = call => Start::of(answer),
                () = assignment.lost() => Start::Failed(left(&assignment)),
            };
            let attempt = Attempt { span, assignment };
            match answer {
                Start::Taken(picture) => return Ok(picture),
                Start::Full(error) => refusals.note(attempt, error),
                Start::Failed(error) => {
                    let reason = error.to_string();
                    telemetry::fail(&attempt.span, &error);
                    budget.spend(error)?;
                    self.pool.retrying(attempt, &reason);
                }
            }
        }
    }
}
