//! The one error type of the engine.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// What every fallible function of the engine returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong inside the engine, sorted by who has to act on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A caller's value is outside what is allowed; nothing was started.
    #[error("{field}: {limit}, got {value}")]
    BadInput {
        /// The request field, as the API names it.
        field: &'static str,
        /// What is allowed.
        limit: String,
        /// What was given (shortened where it is long).
        value: String,
    },

    /// A checkpoint file is missing, damaged, or does not fit the configuration.
    #[error("{}: {item}: {reason}", file.display())]
    Checkpoint {
        /// The offending file (or directory).
        file: PathBuf,
        /// The tensor, field or entry in it.
        item: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The configuration asks for something that cannot work, with the reason.
    #[error("{what}: {reason}")]
    Unsupported {
        /// The setting, e.g. `tensor-parallel degree 3`.
        what: String,
        /// Why it cannot work.
        reason: String,
    },

    /// No room now; the same request can be accepted later.
    #[error("{what} is full: {limit}, needed {needed}")]
    Capacity {
        /// The resource, e.g. `queue`.
        what: &'static str,
        /// How much there is.
        limit: String,
        /// How much this request needs.
        needed: String,
        /// When to ask again, where that is known.
        retry_after: Option<Duration>,
    },

    /// The request was cancelled by its owner.
    #[error("cancelled")]
    Cancelled,

    /// The model's scores of a token are infinite or not numbers: nothing can be drawn from them.
    #[error("token {n} of output {output}: the model gave no finite scores to draw from")]
    NotFinite {
        /// Index of the output in its request.
        output: usize,
        /// Number of tokens before this one.
        n: u32,
    },

    /// The request's deadline passed before it was done.
    #[error("deadline exceeded")]
    DeadlineExceeded,

    /// A rank, a device or a collective failed; the group is lost.
    #[error("backbone group lost: {0}")]
    GroupLost(String),

    /// A service that works for others has ended, cannot start, or broke its contract.
    #[error("{what} lost: {reason}")]
    WorkerLost {
        /// The service, e.g. `decoder`.
        what: &'static str,
        /// What happened to it.
        reason: String,
    },
}

impl Error {
    /// An [`Error::BadInput`]; `value` is shortened to 80 characters.
    pub fn bad_input(field: &'static str, limit: impl Into<String>, value: impl ToString) -> Self {
        Self::BadInput {
            field,
            limit: limit.into(),
            value: shorten(&value.to_string(), 80),
        }
    }

    /// An [`Error::Checkpoint`].
    pub fn checkpoint(file: &Path, item: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Checkpoint {
            file: file.to_owned(),
            item: item.into(),
            reason: reason.into(),
        }
    }

    /// An [`Error::Io`].
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// An [`Error::WorkerLost`].
    pub fn worker_lost(what: &'static str, reason: impl Into<String>) -> Self {
        Self::WorkerLost {
            what,
            reason: reason.into(),
        }
    }

    /// Whether the same request may succeed elsewhere or later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Capacity { .. } | Self::GroupLost(_) | Self::WorkerLost { .. } => true,
            Self::BadInput { .. }
            | Self::Checkpoint { .. }
            | Self::Io { .. }
            | Self::Unsupported { .. }
            | Self::Cancelled
            | Self::NotFinite { .. }
            | Self::DeadlineExceeded => false,
        }
    }
}

fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let head: String = text.chars().take(limit).collect();
    format!("{head}… ({} characters)", text.chars().count())
}
