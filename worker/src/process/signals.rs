//! How a process is told to end.

use std::path::Path;

use tokio::signal::unix::{Signal, SignalKind, signal};
use xomni_engine::{Error, Result};

/// SIGTERM and SIGINT, caught from the moment this is made.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches the signals.
    ///
    /// # Errors
    /// [`Error::Io`] if the system does not let it.
    pub fn catch() -> Result<Self> {
        let catch = |kind, name| signal(kind).map_err(|error| Error::io(Path::new(name), error));
        Ok(Self {
            terminate: catch(SignalKind::terminate(), "SIGTERM")?,
            interrupt: catch(SignalKind::interrupt(), "SIGINT")?,
        })
    }

    /// Waits for the next of them and names it. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
