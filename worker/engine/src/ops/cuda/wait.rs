//! Waiting for steps whose ranks exchange on their devices.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// How often a step is looked at that has not ended: far more often than steps end.
const POLL: Duration = Duration::from_micros(50);
/// How often, meanwhile, the ranks are.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `has_ended`, and looks at the other ranks by `look` meanwhile.
///
/// # Errors
/// What `has_ended` or `look` says; [`Error::GroupLost`] after `deadline`.
pub(super) fn until(
    has_ended: &mut dyn FnMut() -> Result<bool>,
    deadline: Duration,
    mut look: impl FnMut() -> Result<()>,
) -> Result<()> {
    let since = Instant::now();
    let mut looked = since;
    while !has_ended()? {
        let now = Instant::now();
        if now - looked >= LOOK {
            looked = now;
            look()?;
            if now - since >= deadline {
                return Err(Error::GroupLost("a rank is overdue".into()));
            }
        }
        thread::sleep(POLL);
    }
    Ok(())
}
