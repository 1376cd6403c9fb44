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

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use xomni_engine::{sampling::SamplingParams, schedule::OutputSpec};

    use super::*;

    const TOKENS: u32 = 12;

    fn job(forced: usize) -> GenerateJob {
        let forced = vec![0; forced];
        let output = |image_index| OutputSpec {
            image_index,
            forced: forced.clone(),
        };
        GenerateJob {
            request_id: "r".into(),
            attempt: 0,
            priority: 0,
            mode: Mode::Image,
            prompt: vec![0],
            negative_prompt: None,
            sampling: SamplingParams::GREEDY,
            seed: 0,
            outputs: vec![output(0), output(1)],
            max_tokens: TOKENS as usize,
            stop_ids: vec![],
            deadline: None,
            log_probs: false,
        }
    }

    /// The frames of both outputs, cut at `cuts` and one output after the other.
    fn frames(forced: u32, cuts: &[u32]) -> Vec<TokenFrame> {
        let mut frames = vec![];
        for output in 0..2 {
            let mut ends: Vec<u32> = cuts
                .iter()
                .map(|cut| forced + cut % (TOKENS - forced))
                .collect();
            ends.push(TOKENS);
            ends.sort_unstable();
            ends.dedup();
            let mut first = forced;
            for end in ends.into_iter().filter(|end| *end > forced) {
                frames.push(TokenFrame {
                    output,
                    first,
                    tokens: (first..end).collect(),
                    log_probs: vec![],
                    finished: (end == TOKENS).then_some(FinishReason::Length),
                });
                first = end;
            }
        }
        frames
    }

    fn taken(forced: usize, frames: &[TokenFrame]) -> Result<Sequence> {
        let mut sequence = Sequence::new(&job(forced));
        for frame in frames {
            sequence.accept(frame)?;
        }
        Ok(sequence)
    }

    proptest! {
        /// All frames in order complete a job; one that is missing, doubled or before its turn
        /// does not.
        #[test]
        fn only_all_frames_in_order_complete_a_job(
            forced in 0..TOKENS,
            cuts in vec(any::<u32>(), 0..5),
            place: prop::sample::Index,
        ) {
            let whole = frames(forced, &cuts);
            let forced = forced as usize;
            prop_assert!(taken(forced, &whole).expect("in order").is_complete());
            let at = place.index(whole.len());
            let mut missing = whole.clone();
            let frame = missing.remove(at);
            prop_assert!(taken(forced, &missing).map_or(true, |sequence| !sequence.is_complete()));
            let mut doubled = whole.clone();
            doubled.insert(at, frame);
            prop_assert!(taken(forced, &doubled).is_err());
            let mut swapped = whole;
            if at > 0 && swapped[at].output == swapped[at - 1].output {
                swapped.swap(at - 1, at);
                prop_assert!(taken(forced, &swapped).is_err());
            }
        }
    }

    #[test]
    fn frames_that_break_the_contract_are_refused() {
        let frame = TokenFrame {
            output: 0,
            first: 0,
            tokens: vec![1, 2],
            log_probs: vec![],
            finished: None,
        };
        let wrong = [
            TokenFrame {
                output: 2,
                ..frame.clone()
            },
            TokenFrame {
                first: u32::MAX,
                ..frame.clone()
            },
            TokenFrame {
                log_probs: vec![0.0, 0.0],
                ..frame.clone()
            },
            TokenFrame {
                tokens: vec![0; 13],
                ..frame.clone()
            },
            TokenFrame {
                finished: Some(FinishReason::Length),
                ..frame.clone()
            },
            TokenFrame {
                finished: Some(FinishReason::Stop),
                ..frame.clone()
            },
        ];
        for frame in wrong {
            let refused = taken(0, std::slice::from_ref(&frame)).map(|_| ());
            assert!(refused.is_err_and(|error| error.retryable()), "{frame:?}");
        }
        let mut text = Sequence::new(&GenerateJob {
            mode: Mode::Text,
            ..job(0)
        });
        let stopped = TokenFrame {
            finished: Some(FinishReason::Stop),
            ..frame
        };
        assert!(text.accept(&stopped).is_ok() && !text.runs() && !text.is_complete());
        assert!(text.accept(&stopped).is_err(), "it has finished");
    }
}
