//! What can end a command.

use std::path::PathBuf;

use xomni_worker::telemetry::TRACE_ID;

/// An error that the user is shown.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] xomni_engine::Error),

    /// An argument is wrong.
    #[error("{0}")]
    Argument(String),

    /// What is measured does not do what it must.
    #[error("{0}")]
    Wrong(String),

    /// A report could not be written as JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),

    /// A task of this process panicked.
    #[error("internal error: {0}")]
    Task(#[from] tokio::task::JoinError),

    /// The server refused or failed.
    #[error("{}", answer(.0))]
    Server(#[from] tonic::Status),

    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// What a server said; where that is a failure of its own, with the trace that tells why.
fn answer(status: &tonic::Status) -> String {
    let message = status.message();
    let trace = status.metadata().get(TRACE_ID);
    let trace = trace.and_then(|trace| trace.to_str().ok());
    match trace.filter(|_| status.code() != tonic::Code::InvalidArgument) {
        Some(trace) => format!("{message} (trace {trace})"),
        None => message.to_owned(),
    }
}

impl CliError {
    /// 2 for input that the user can correct, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Argument(_) | Self::Engine(xomni_engine::Error::BadInput { .. }) => 2,
            Self::Server(status) if status.code() == tonic::Code::InvalidArgument => 2,
            Self::Server(_)
            | Self::Engine(_)
            | Self::Wrong(_)
            | Self::Json(_)
            | Self::Task(_)
            | Self::File { .. } => 1,
        }
    }

    /// A function that attaches `path` to an IO error.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File {
            path: path.into(),
            source,
        }
    }
}
