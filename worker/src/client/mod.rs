//! The services of other processes, called over gRPC: the traits of [`crate::api`] again.

mod backbone;
mod decoder;
mod dial;
mod sequence;

use std::{future::Future, time::Duration};

pub use backbone::RemoteBackbone;
pub use decoder::RemoteDecoder;
pub use dial::Dialer;
use tokio::time::timeout;
use tonic::{Request, metadata::MetadataMap};
use xomni_engine::{Error, Result};

pub use crate::convert::backbone::Target;
use crate::telemetry;

/// Events that a slow reader may leave unread before the worker is made to wait.
const EVENTS_IN_FLIGHT: usize = 64;

/// How long a worker may be silent before it is taken for lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// From a call to its acceptance.
    pub accept: Duration,
    /// From acceptance, or for a decode from the moment its codes are sent, to the first event:
    /// the time in the queue.
    pub first: Duration,
    /// Between the events of work that has begun.
    pub progress: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            accept: Duration::from_secs(10),
            first: Duration::from_secs(600),
            progress: Duration::from_secs(60),
        }
    }
}

/// What all calls to one worker have in common.
#[derive(Debug, Clone)]
pub struct Calls {
    /// What the worker must serve.
    pub target: Target,
    /// How long it may be silent.
    pub patience: Patience,
    /// Writes what goes along with every call, such as its trace context.
    pub annotate: fn(&mut MetadataMap),
}

impl Calls {
    /// Calls to `target` with the usual patience, which carry the caller's trace.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            patience: Patience::default(),
            annotate: telemetry::inject,
        }
    }

    fn request<T>(&self, message: T, timeout: Option<Duration>) -> Request<T> {
        let mut request = Request::new(message);
        (self.annotate)(request.metadata_mut());
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        request
    }
}

/// Waits for `answer` no longer than `patience`.
async fn within<T>(
    patience: Duration,
    what: &str,
    answer: impl Future<Output = T>,
) -> Result<T, Error> {
    let overdue = |_| lost(format!("{what} is overdue after {patience:?}"));
    timeout(patience, answer).await.map_err(overdue)
}

/// The error of a worker that does not answer as it should.
fn lost(reason: impl Into<String>) -> Error {
    Error::worker_lost("worker", reason)
}
