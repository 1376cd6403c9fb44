//! Whether the frames of a job come in order, none missing, none twice.

use xomni_engine::{
    Result,
    schedule::{FinishReason, Mode},
};

use super::lost;
use crate::api::{GenerateJob, TokenFrame};

/// How far the outputs of a job have come.
#[derive(Debug)]
pub(super) struct Sequence {
    outputs: Vec<Place>,
    max_tokens: usize,
    log_probs: bool,
    exact: bool,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    tokens: usize,
    begun: bool,
    finished: bool,
}

impl Sequence {
    /// The outputs of `job`, of which the forced tokens are known.
    pub(super) fn new(job: &GenerateJob) -> Self {
        let place = |forced: usize| Place {
            tokens: forced,
            begun: false,
            finished: false,
        };
        Self {
            outputs: job
                .outputs
                .iter()
                .map(|output| place(output.forced.len()))
                .collect(),
            max_tokens: job.max_tokens,
            log_probs: job.log_probs,
            exact: job.mode == Mode::Image,
        }
    }

    /// Whether an output has begun that has not finished.
    pub(super) fn runs(&self) -> bool {
        self.outputs
            .iter()
            .any(|place| place.begun && !place.finished)
    }

    /// Whether every output has finished.
    pub(super) fn is_complete(&self) -> bool {
        self.outputs.iter().all(|place| place.finished)
    }

    /// Takes the next frame.
    ///
    /// # Errors
    /// A lost worker, for a frame that does not continue its output or ends it wrongly; the
    /// sequence is then as before.
    pub(super) fn accept(&mut self, frame: &TokenFrame) -> Result<()> {
        let output = frame.output;
        let wrong = |what: String| Err(lost(format!("a frame of output {output}: {what}")));
        let Some(place) = self.outputs.get_mut(output) else {
            return wrong(format!("there are {}", self.outputs.len()));
        };
        if place.finished {
            return wrong("it has finished".into());
        }
        let begins_at = frame.first as usize;
        if !frame.tokens.is_empty() && begins_at != place.tokens {
            return wrong(format!("begins at {begins_at} instead of {}", place.tokens));
        }
        let log_probs = if self.log_probs {
            frame.tokens.len()
        } else {
            0
        };
        if frame.log_probs.len() != log_probs {
            return wrong(format!("{} log-probabilities", frame.log_probs.len()));
        }
        let tokens = place.tokens + frame.tokens.len();
        let short = tokens < self.max_tokens;
        let ends_wrongly = match frame.finished {
            None => false,
            Some(FinishReason::Length) => short,
            Some(FinishReason::Stop) => short && self.exact,
        };
        if tokens > self.max_tokens || ends_wrongly {
            return wrong(format!("{tokens} of {} tokens", self.max_tokens));
        }
        *place = Place {
            tokens,
            begun: true,
            finished: frame.finished.is_some(),
        };
        Ok(())
    }
}
