//! One answer as it is written.

use xomni_engine::{
    Error, Result,
    schedule::FinishReason,
    text::{Detokenizer, StopStrings, Tokenizer},
};
use xomni_worker::api::TokenFrame;

use super::TextEvent;
use crate::request::TextJob;

/// A text that grows token by token until a stop token, a stop string or its length ends it.
#[derive(Debug)]
pub(super) struct Choice {
    index: usize,
    detokenizer: Detokenizer,
    stop: StopStrings,
    tokens: usize,
    finished: Option<FinishReason>,
}

impl Choice {
    /// The texts of a job, before their first tokens.
    pub(super) fn all(job: &TextJob) -> Vec<Self> {
        let choice = |index| Self {
            index,
            detokenizer: Detokenizer::default(),
            stop: StopStrings::new(job.stop.iter().cloned()),
            tokens: 0,
            finished: None,
        };
        (0..job.n).map(choice).collect()
    }

    pub(super) fn goes_on(&self) -> bool {
        self.finished.is_none()
    }

    /// Takes the next tokens; what is certain of the text then, if that is anything new. Tokens
    /// after a stop string are dropped.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] if they do not continue the text.
    pub(super) fn on_frame(
        &mut self,
        tokenizer: &Tokenizer,
        stop_ids: &[u32],
        frame: &TokenFrame,
    ) -> Result<Option<TextEvent>> {
        if !self.goes_on() {
            return Ok(None);
        }
        if !frame.tokens.is_empty() && frame.first as usize != self.tokens {
            let (index, got, first) = (self.index, self.tokens, frame.first);
            let reason = format!("answer {index} has {got} tokens, the next begin at {first}");
            return Err(Error::worker_lost("backbone", reason));
        }
        let (mut piece, mut text) = (String::new(), String::new());
        for &token in &frame.tokens {
            self.tokens += 1;
            piece.clear();
            // A stop token is no part of the answer, special or not.
            if !stop_ids.contains(&token) {
                self.detokenizer.push(tokenizer, token, &mut piece);
            }
            if self.stop.push(&piece, &mut text) {
                self.finished = Some(FinishReason::Stop);
                break;
            }
        }
        if self.goes_on()
            && let Some(reason) = frame.finished
        {
            piece.clear();
            self.detokenizer.finish(&mut piece);
            if !self.stop.push(&piece, &mut text) {
                self.stop.finish(&mut text);
            }
            self.finished = Some(reason);
        }
        let event = TextEvent {
            index: self.index,
            text,
            tokens: self.tokens,
            finished: self.finished,
        };
        let new = !event.text.is_empty() || event.finished.is_some();
        Ok(new.then_some(event))
    }
}
