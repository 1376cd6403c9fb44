//! The ranks of the leading process as the scheduler's service sees them in one epoch.

use std::{collections::VecDeque, sync::Arc};

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use xomni_engine::{
    Error, Result,
    group::{StepOutput, ThreadGroup},
    parallel::Abort,
    schedule::Step,
};

use super::{
    meter::{Given, StepTimer},
    spans::RankSpans,
};
use crate::backbone::{StepRunner, Traces};

/// What the ranks of this process do, in order.
#[derive(Debug)]
pub(super) enum RanksEvent {
    /// They are connected to all others, or cannot be.
    Connected(Result<()>),
    /// They were given a step.
    Planned(Arc<Step>),
    /// Outputs begin with the next step, or have ended.
    Traced(Arc<Traces>),
    /// A step has run; the hash of what it drew.
    Ran { step: u64, hash: u64 },
    /// They run nothing more in this epoch.
    Failed(String),
}

/// Runs steps on the ranks of this process and tells the epoch, which sends them to all others.
#[derive(Debug)]
pub(super) struct EpochRunner<E> {
    pub ranks: Arc<ThreadGroup>,
    pub spans: RankSpans,
    pub events: mpsc::Sender<E>,
    pub abort: Abort,
    pub timer: StepTimer,
    /// Steps that were submitted and not collected.
    pub given: VecDeque<Given>,
}

impl<E: From<RanksEvent> + Send + 'static> EpochRunner<E> {
    fn tell(&self, event: RanksEvent) -> Result<()> {
        let over = || Error::GroupLost("the epoch is over".into());
        self.events
            .blocking_send(event.into())
            .map_err(|_| over())?;
        if self.abort.aborted() {
            return Err(over());
        }
        Ok(())
    }
}

impl<E: From<RanksEvent> + Send + 'static> StepRunner for EpochRunner<E> {
    fn trace(&mut self, traces: Traces) -> Result<()> {
        self.spans.change(&traces);
        self.tell(RanksEvent::Traced(Arc::new(traces)))
    }

    fn submit(&mut self, step: &Arc<Step>) -> Result<()> {
        self.tell(RanksEvent::Planned(step.clone()))?;
        self.given.push_back(Given::now(step));
        self.ranks.submit(step)
    }

    fn collect(&mut self) -> Result<StepOutput> {
        let output = self.ranks.collect();
        if let (Some(given), Ok(output)) = (self.given.pop_front(), &output) {
            self.timer.done(&given, output);
        }
        match &output {
            Ok(output) => self.tell(RanksEvent::Ran {
                step: output.step,
                hash: hash(output),
            })?,
            // What comes first is the reason; an epoch that is over already has one.
            Err(error) => drop(self.tell(RanksEvent::Failed(error.to_string()))),
        }
        output
    }
}

/// The start of the SHA-256 of all tokens and log-probabilities that a step drew.
pub(super) fn hash(output: &StepOutput) -> u64 {
    let mut hash = Sha256::new();
    for drawn in &output.drawn {
        let token = drawn.as_ref().map_or(u32::MAX, |(token, _)| *token);
        let log_prob = drawn.as_ref().and_then(|(_, drawn)| drawn.log_prob);
        hash.update(token.to_le_bytes());
        hash.update(log_prob.unwrap_or(f32::NAN).to_bits().to_le_bytes());
    }
    let mut start = [0; 8];
    start.copy_from_slice(&hash.finalize()[..8]);
    u64::from_le_bytes(start)
}
