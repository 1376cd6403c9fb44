//! Children that do not outlive their parent.

use xomni_engine::{Error, Result};

/// Makes the system kill this process when the thread that started it ends. Drains nothing: who
/// wants that sends SIGTERM.
///
/// # Errors
/// [`Error::Unsupported`] where the system cannot do that, or if the parent is gone already.
#[cfg(target_os = "linux")]
pub fn die_with_parent() -> Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};

    let refused = |reason: String| Error::Unsupported {
        what: "--die-with-parent".into(),
        reason,
    };
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| refused(error.to_string()))?;
    if getppid() != parent {
        return Err(refused("the parent has ended".into()));
    }
    Ok(())
}

/// Makes the system kill this process when the thread that started it ends.
///
/// # Errors
/// [`Error::Unsupported`]: this system cannot do that.
#[cfg(not(target_os = "linux"))]
pub fn die_with_parent() -> Result<()> {
    Err(Error::Unsupported {
        what: "--die-with-parent".into(),
        reason: "needs Linux".into(),
    })
}
