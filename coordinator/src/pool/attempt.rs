//! A job across its attempts, without IO: what was received, what to ask the next worker for, and
//! when to give up.

use xomni_engine::{
    Error, Result,
    schedule::{FinishReason, Mode},
};
use xomni_worker::api::{GenerateJob, TokenFrame};

/// How many workers may fail a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    failures: u32,
    limit: u32,
}

impl Budget {
    /// For at most `limit` attempts.
    pub fn new(limit: u32) -> Self {
        Self { failures: 0, limit }
    }

    /// Attempts that failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure.
    ///
    /// # Errors
    /// The failure, if it is final or the last attempt's.
    pub fn spend(&mut self, failure: Error) -> Result<()> {
        self.failures += 1;
        if failure.retryable() && self.failures < self.limit {
            Ok(())
        } else {
            Err(failure)
        }
    }
}

/// The tokens of a job and the attempts to draw them.
#[derive(Debug)]
pub struct Attempts {
    /// The job; its forced tokens are all that is known.
    job: GenerateJob,
    /// Why each output ended.
    finished: Vec<Option<FinishReason>>,
    /// The output of the job that each output of the running attempt is.
    running: Vec<usize>,
    /// Numerics that the tokens received so far were drawn with.
    fingerprint: Option<String>,
    received: bool,
    budget: Budget,
}

impl Attempts {
    /// A job before its first attempt.
    pub fn new(job: GenerateJob, limit: u32) -> Self {
        Self {
            finished: vec![None; job.outputs.len()],
            running: vec![],
            fingerprint: None,
            received: false,
            budget: Budget::new(limit),
            job,
        }
    }

    /// The job as the caller stated it, with the tokens known now.
    pub fn job(&self) -> &GenerateJob {
        &self.job
    }

    /// Number of the next attempt, or of the one that runs.
    pub fn number(&self) -> u32 {
        self.job.attempt + self.budget.failures()
    }

    /// Whether every output is complete.
    pub fn is_done(&self) -> bool {
        self.finished.iter().all(Option::is_some)
    }

    /// Whether tokens were received, so that the job can only go on and not be refused.
    pub fn has_begun(&self) -> bool {
        self.received
    }

    /// The numerics that the next worker must have: an image is not continued with others.
    pub fn fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref().filter(|_| self.received)
    }

    /// Rows that the next attempt has to run.
    pub fn rows(&self) -> u64 {
        let outputs = self.finished.iter().filter(|end| end.is_none()).count();
        let rows = self.job.prompt.len() + outputs * self.job.max_tokens;
        self.rows_per_token() * rows as u64
    }

    /// Rows that run for one token.
    pub fn rows_per_token(&self) -> u64 {
        1 + u64::from(self.job.negative_prompt.is_some())
    }

    /// What to ask a worker of this fingerprint for: the outputs that are not complete, from the
    /// tokens known so far.
    pub fn next(&mut self, fingerprint: &str) -> GenerateJob {
        let incomplete = |&index: &usize| self.finished[index].is_none();
        self.running = (0..self.finished.len()).filter(incomplete).collect();
        self.fingerprint = Some(fingerprint.to_owned());
        let outputs = self.running.iter();
        GenerateJob {
            attempt: self.number(),
            outputs: outputs
                .map(|&index| self.job.outputs[index].clone())
                .collect(),
            ..self.job.clone()
        }
    }

    /// Takes a frame of the running attempt and returns what is new in it, as a frame of the job.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] if it does not continue what was received: the worker cannot be
    /// trusted with the job.
    pub fn on_frame(&mut self, frame: TokenFrame) -> Result<Option<TokenFrame>> {
        let output = self.running.get(frame.output).copied();
        let output = output.ok_or_else(|| wrong(frame.output, "is not in the job"))?;
        let known = &mut self.job.outputs[output].forced;
        let new = unseen(known, &frame).map_err(|reason| wrong(output, reason))?;
        let (tokens, log_probs) = match new {
            0 => (vec![], vec![]),
            new => (
                frame.tokens[frame.tokens.len() - new..].to_vec(),
                frame.log_probs[frame.log_probs.len().saturating_sub(new)..].to_vec(),
            ),
        };
        if self.job.log_probs && log_probs.len() != tokens.len() {
            return Err(wrong(output, "has tokens without log-probabilities"));
        }
        if new > 0 && (self.finished[output].is_some() || known.len() + new > self.job.max_tokens) {
            return Err(wrong(output, "has tokens after its end"));
        }
        let first = known.len() as u32;
        known.extend(&tokens);
        self.received |= new > 0;
        let finished = self.on_end(output, frame.finished)?;
        Ok((new > 0 || finished.is_some()).then_some(TokenFrame {
            output,
            first,
            tokens,
            log_probs,
            finished,
        }))
    }

    /// Why an output ends now, if it does: its last token says so, or else the worker.
    fn on_end(
        &mut self,
        output: usize,
        told: Option<FinishReason>,
    ) -> Result<Option<FinishReason>> {
        if self.finished[output].is_some() {
            return Ok(None);
        }
        let job = &self.job;
        let known = &job.outputs[output].forced;
        let stopped = job.mode == Mode::Text
            && self.received
            && known.last().is_some_and(|last| job.stop_ids.contains(last));
        let end = match (stopped, known.len() == job.max_tokens) {
            (true, _) => Some(FinishReason::Stop),
            (false, true) => Some(FinishReason::Length),
            (false, false) => None,
        };
        if end.is_none() && told.is_some() {
            return Err(wrong(output, "ended before its last token"));
        }
        self.finished[output] = end;
        Ok(end)
    }

    /// Counts the end of an attempt that did not complete the job.
    ///
    /// # Errors
    /// The failure, if there is no point in another attempt.
    pub fn on_failure(&mut self, failure: Error) -> Result<()> {
        self.running.clear();
        self.budget.spend(failure)
    }
}

/// How many of a frame's tokens come after those that are `known`; the others must be the same.
fn unseen(known: &[u32], frame: &TokenFrame) -> Result<usize, &'static str> {
    if frame.tokens.is_empty() {
        return Ok(0);
    }
    let repeated = known.get(frame.first as usize..).ok_or("lacks tokens")?;
    let both = repeated.len().min(frame.tokens.len());
    if repeated[..both] != frame.tokens[..both] {
        return Err("differs from what was drawn before");
    }
    Ok(frame.tokens.len() - both)
}

fn wrong(output: usize, reason: &str) -> Error {
    Error::worker_lost("backbone", format!("output {output} {reason}"))
}

#[cfg(test)]
mod tests;
