//! Ends an epoch from any thread.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{Error, Result};

/// Ends the exchanges of one epoch: every rank of this process that waits in one, or still
/// connects, returns at once.
#[derive(Clone, Default)]
pub struct Abort(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    aborted: bool,
    /// What frees those who wait.
    ends: Vec<Box<dyn FnOnce() + Send>>,
}

impl Abort {
    /// Ends what there is, and all that is still to come.
    pub fn abort(&self) {
        let ends = {
            let mut state = self.lock();
            state.aborted = true;
            std::mem::take(&mut state.ends)
        };
        for end in ends {
            end();
        }
    }

    /// Whether [`Abort::abort`] was called.
    pub fn aborted(&self) -> bool {
        self.lock().aborted
    }

    /// Has `end` called when the epoch is ended. It must not wait for anything.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if that has happened.
    pub fn on_abort(&self, end: impl FnOnce() + Send + 'static) -> Result<()> {
        let mut state = self.lock();
        if state.aborted {
            return Err(ended());
        }
        state.ends.push(Box::new(end));
        Ok(())
    }

    /// The list is valid whatever a panicking holder did.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Abort").field(&self.aborted()).finish()
    }
}

/// What those who waited are told.
pub(crate) fn ended() -> Error {
    Error::GroupLost("the epoch was ended".into())
}
