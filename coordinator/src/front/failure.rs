//! Why a call ends without its result, whatever protocol it came by.

use std::time::Duration;

use tonic::Code;
use tracing::Span;
use xomni_engine::Error;
use xomni_worker::telemetry;

/// Why a call is refused or fails.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The request itself, or its work.
    #[error(transparent)]
    Job(#[from] Error),
    /// There is no room now.
    #[error("{error}")]
    Busy {
        /// What is full.
        error: Error,
        /// When to come again.
        retry_after: Duration,
    },
    /// Its caller has no key that is known.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// Its caller's key does not allow it.
    #[error("{0}")]
    Forbidden(&'static str),
    /// Its caller's key allows no more now.
    #[error("{what}: {limit}, got {value}")]
    Limited {
        /// The limit of the key.
        what: &'static str,
        /// How much it allows.
        limit: String,
        /// What was asked for.
        value: String,
        /// When to come again.
        retry_after: Duration,
    },
    /// Nothing is served now.
    #[error("{0}")]
    Unavailable(&'static str),
}

impl Failure {
    /// Writes the one line of log about the request of the current span, which ends so.
    pub fn report(&self) {
        match self.code() {
            code @ (Code::DataLoss | Code::Internal | Code::Unavailable) => {
                tracing::warn!(?code, reason = %self, "request failed");
            }
            code => tracing::info!(?code, reason = %self, "request ended"),
        }
        telemetry::fail(&Span::current(), self);
    }

    /// What it is counted as: the canonical code that gRPC has for it.
    pub fn code(&self) -> Code {
        match self {
            Self::Job(error) | Self::Busy { error, .. } => match error {
                Error::BadInput { .. } => Code::InvalidArgument,
                Error::Capacity { .. } => Code::ResourceExhausted,
                Error::Cancelled => Code::Cancelled,
                Error::DeadlineExceeded => Code::DeadlineExceeded,
                Error::Unsupported { .. } => Code::Unimplemented,
                Error::GroupLost(_) | Error::WorkerLost { .. } => Code::Unavailable,
                Error::NotFinite { .. } => Code::DataLoss,
                Error::Checkpoint { .. } | Error::Io { .. } => Code::Internal,
            },
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::Forbidden(_) => Code::PermissionDenied,
            Self::Limited { .. } => Code::ResourceExhausted,
            Self::Unavailable(_) => Code::Unavailable,
        }
    }
}
