//! What a worker answers for, and whether a request asks for just that.

use std::time::Duration;

use tokio::sync::watch;
use xomni_cluster::record::{Load, WorkerState};
use xomni_engine::Error;
use xomni_proto::PROTOCOL_VERSION;

use super::Refusal;

/// What a service answers for.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Name of the model.
    pub model: String,
    /// What determines its results to the bit.
    pub fingerprint: String,
    /// Version of its weights.
    pub weights_version: String,
    /// Token ids below this exist (backbone only).
    pub vocabulary: u32,
    /// How it stands now.
    pub standing: watch::Receiver<Standing>,
}

/// What changes about a worker while it serves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// The epoch that its group is in (backbone only).
    pub epoch: u64,
    /// Whether it takes work.
    pub state: WorkerState,
    /// What it holds, as far as it has been counted.
    pub load: Load,
}

impl Standing {
    /// Shortest and longest wait that a refused client is told.
    const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

    /// A worker that takes work and has none.
    pub fn ready(epoch: u64) -> Self {
        Self {
            epoch,
            state: WorkerState::Ready,
            load: Load::default(),
        }
    }

    /// When the work that waits should be done.
    pub fn retry_after(&self) -> Duration {
        let (least, most) = Self::RETRY_AFTER;
        let seconds = self.load.backlog as f64 / self.load.rate;
        Duration::try_from_secs_f64(seconds).map_or(most, |wait| wait.clamp(least, most))
    }
}

/// What a request says of the worker it wants; empty or 0: any.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub protocol_version: u32,
    pub model: &'a str,
    pub fingerprint: &'a str,
    pub weights_version: &'a str,
    pub epoch: u64,
}

impl Identity {
    /// Refuses what this worker must not answer.
    pub(super) fn check(&self, wanted: &Wanted<'_>) -> Result<(), Refusal> {
        let version = wanted.protocol_version;
        if version == 0 || version.abs_diff(PROTOCOL_VERSION) > 1 {
            return Err(mismatch("protocol version", version, PROTOCOL_VERSION));
        }
        if wanted.model.is_empty() {
            return Err(Error::bad_input("model", "must not be empty", "\"\"").into());
        }
        if wanted.model != self.model {
            return Err(mismatch("model", wanted.model, &self.model));
        }
        let named = [
            ("fingerprint", wanted.fingerprint, &self.fingerprint),
            (
                "weights version",
                wanted.weights_version,
                &self.weights_version,
            ),
        ];
        for (what, wanted, served) in named {
            if !wanted.is_empty() && wanted != served {
                return Err(mismatch(what, wanted, served));
            }
        }
        let standing = *self.standing.borrow();
        match standing.state {
            WorkerState::Ready => {}
            WorkerState::Forming => return Err(Refusal::Unavailable("the group is forming")),
            WorkerState::Draining => return Err(Refusal::Unavailable("the worker drains")),
        }
        if wanted.epoch != 0 && wanted.epoch != standing.epoch {
            return Err(mismatch("epoch", wanted.epoch, standing.epoch));
        }
        Ok(())
    }
}

fn mismatch(what: &'static str, wanted: impl ToString, served: impl ToString) -> Refusal {
    let wanted = wanted.to_string().escape_debug().take(80).collect();
    Refusal::Precondition {
        what,
        wanted,
        served: served.to_string(),
    }
}
