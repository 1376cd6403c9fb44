//! What can end a command.

use std::path::PathBuf;

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
    #[error("{}", .0.message())]
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
