//! How a process begins and ends.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io,
};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

/// Ends this process when the one that started it does.
///
/// # Errors
/// What the system says, or that the parent is gone already.
pub fn die_with_parent() -> io::Result<()> {
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != parent {
        return Err(io::Error::other("the parent process is gone"));
    }
    Ok(())
}

/// Ready once SIGTERM or SIGINT arrives, from this call on.
///
/// # Errors
/// What the system says.
pub fn stop_signal() -> io::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// A name that no other process has.
pub fn unique_id(role: &str) -> String {
    // Every state has keys of its own from the system.
    let random = RandomState::new().build_hasher().finish();
    format!("{role}-{random:016x}")
}
