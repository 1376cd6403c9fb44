//! Work that takes long and that nobody waits for if the process ends.

use std::thread;

use tokio::sync::oneshot;
use xomni_engine::{Error, Result};

/// Runs `work` on a thread of its own. Unlike a blocking task of the runtime it does not keep the
/// process from ending.
///
/// # Errors
/// What `work` returns; [`Error::WorkerLost`] if it panics or there is no thread.
pub async fn on_thread<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, done) = oneshot::channel();
    let run = move || {
        let _ = sender.send(work());
    };
    thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|error| Error::worker_lost(name, format!("no thread: {error}")))?;
    done.await
        .unwrap_or_else(|_| Err(Error::worker_lost(name, "panicked")))
}
