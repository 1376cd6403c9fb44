//! One rank's communicator: whose calls may end at any moment, because another thread ends the epoch.

#![allow(unsafe_code, reason = "NCCL is called through its C interface")]

use std::{
    ffi::{c_int, c_void},
    ptr::null_mut,
    sync::{Mutex, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use cudarc::nccl::sys::{ncclComm_t, ncclUniqueId};

use super::library::{F32, IN_PROGRESS, Library, SUCCESS};
use crate::{
    Error, Result,
    ops::cuda::{
        driver::{Context, Memory, Stream, give_up},
        lock,
    },
    parallel::abort::ended,
};

/// How long what runs on the device may take to end once its rank leaves the epoch.
const ABORT: Duration = Duration::from_secs(30);
/// How long NCCL may still launch what it was told to before that is aborted too.
const LAUNCH: Duration = Duration::from_millis(200);
/// Calls that take longer are asked for less often.
const SHORT: Duration = Duration::from_millis(2);
const PAUSE: Duration = Duration::from_millis(1);

/// A communicator of one rank.
pub(super) struct Communicator {
    library: &'static Library,
    size: usize,
    state: Mutex<State>,
}

struct State {
    /// Until it is aborted.
    comm: Option<Comm>,
    aborting: Option<JoinHandle<()>>,
    /// Closed once NCCL launches nothing any more, or has had [`LAUNCH`] for it.
    launching: Option<mpsc::Receiver<()>>,
}

struct Comm(ncclComm_t);

// SAFETY: used by one thread at a time: under a lock, or by its last owner.
unsafe impl Send for Comm {}

impl Communicator {
    /// Begins to connect rank `rank` of `size` ranks; [`Communicator::settle`] tells when it is done.
    ///
    /// # Errors
    /// [`Error::GroupLost`] with what NCCL says.
    pub(super) fn begin(
        context: &Context,
        library: &'static Library,
        id: ncclUniqueId,
        (rank, size): (usize, usize),
    ) -> Result<Self> {
        context.bind()?;
        let mut config = library.config();
        let mut comm = null_mut();
        // SAFETY: all arguments are valid; `config` is read before the call returns.
        let code = unsafe {
            (library.init_rank)(&mut comm, size as c_int, id, rank as c_int, &mut config)
        };
        let this = Self {
            library,
            size,
            state: Mutex::new(State {
                comm: (!comm.is_null()).then_some(Comm(comm)),
                aborting: None,
                launching: None,
            }),
        };
        match code {
            SUCCESS | IN_PROGRESS => Ok(this),
            code => {
                this.abort();
                this.join();
                Err(library.error("connecting", code))
            }
        }
    }

    fn call(&self, what: &str, call: impl FnOnce(ncclComm_t) -> c_int) -> Result<()> {
        let state = lock(&self.state);
        let comm = state.comm.as_ref().ok_or_else(ended)?;
        match call(comm.0) {
            SUCCESS | IN_PROGRESS => Ok(()),
            code => Err(self.library.error(what, code)),
        }
    }

    /// Whether the last call is done, the ranks being well.
    ///
    /// # Errors
    /// [`Error::GroupLost`] with what NCCL says, or if the communicator was aborted.
    pub(super) fn check(&self) -> Result<bool> {
        let mut code = SUCCESS;
        self.call("looking", |comm| {
            // SAFETY: the communicator is valid while it is locked.
            unsafe { (self.library.async_error)(comm, &mut code) }
        })?;
        match code {
            SUCCESS => Ok(true),
            IN_PROGRESS => Ok(false),
            code => Err(self.library.error("the exchange", code)),
        }
    }

    /// Waits until the last call is done, at most for `limit`, and looks whether the ranks are there if it takes long.
    ///
    /// # Errors
    /// As [`Communicator::check`], what `look` says, or if it is not done in time.
    pub(super) fn settle(
        &self,
        limit: Duration,
        mut look: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let since = Instant::now();
        while !self.check()? {
            match since.elapsed() {
                waited if waited >= limit => {
                    return Err(Error::GroupLost("a rank is overdue".into()));
                }
                waited if waited >= SHORT => {
                    look()?;
                    thread::sleep(PAUSE);
                }
                _ => thread::yield_now(),
            }
        }
        Ok(())
    }

    /// Launches the exchange of `len` values of `f32` for those of all ranks. NCCL does that on a thread of its own: what
    /// comes next in the stream has to wait until the call has settled, or, if it does not, for [`Communicator::leave`].
    ///
    /// # Errors
    /// [`Error::GroupLost`] with what NCCL says, or if the communicator was aborted.
    pub(super) fn all_gather(
        &self,
        stream: &Stream,
        from: &Memory,
        len: usize,
        to: &Memory,
    ) -> Result<()> {
        let bytes = len * size_of::<f32>();
        assert!(
            bytes <= from.bytes() && self.size * bytes <= to.bytes(),
            "past the end of device memory"
        );
        let (from, to) = (from.address() as *const c_void, to.address() as *mut c_void);
        self.call("gathering", |comm| {
            // SAFETY: the communicator is valid while it is locked, and sizes were checked.
            unsafe { (self.library.all_gather)(from, to, len, F32, comm, stream.handle()) }
        })
    }

    /// Ends all that runs on the device, and the communicator once no recording uses it. Returns at once.
    pub(super) fn abort(&self) {
        let mut state = lock(&self.state);
        let Some(comm) = state.comm.take() else {
            return;
        };
        let library = self.library;
        let (launching, launched) = mpsc::channel();
        let aborting = thread::Builder::new()
            .name("nccl-abort".into())
            .spawn(move || end(library, comm, launching));
        match aborting {
            Ok(thread) => state.aborting = Some(thread),
            Err(error) => give_up(&format!("NCCL cannot be ended: {error}")),
        }
        state.launching = Some(launched);
    }

    /// Aborts, and waits until NCCL's thread launches nothing any more, for [`LAUNCH`] at most: a recording may not end while it is
    /// added to.
    pub(super) fn leave(&self) {
        self.abort();
        let launching = lock(&self.state).launching.take();
        if let Some(launching) = launching {
            // Nothing is ever sent.
            let _ = launching.recv();
        }
    }

    /// Waits for the end of a communicator that was aborted and that no recording uses any more.
    pub(super) fn join(&self) {
        let aborting = lock(&self.state).aborting.take();
        if let Some(thread) = aborting {
            // A panic in it was reported by the thread.
            let _ = thread.join();
        }
    }
}

/// Lets NCCL launch what it was told to, drops `launching`, and frees a communicator, once no recording uses it any more.
fn end(library: &Library, comm: Comm, launching: mpsc::Sender<()>) {
    let since = Instant::now();
    let is_launching = || {
        let mut code = SUCCESS;
        // SAFETY: nobody else has it.
        let called = unsafe { (library.async_error)(comm.0, &mut code) };
        called == SUCCESS && code == IN_PROGRESS
    };
    while is_launching() && since.elapsed() < LAUNCH {
        match since.elapsed() < SHORT {
            true => thread::yield_now(),
            false => thread::sleep(PAUSE),
        }
    }
    drop(launching);
    // SAFETY: nobody else has it.
    let code = unsafe { (library.abort)(comm.0) };
    if code != SUCCESS && code != IN_PROGRESS {
        let error = library.error("aborting", code);
        tracing::warn!(%error, "a communicator may not be free");
    }
}

/// Ends the process if it is not dropped in time: a device that does not end what it runs is of no use, and the threads
/// that wait for it are none either.
pub(super) struct Watch {
    done: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn begin() -> Self {
        let (done, ended) = mpsc::channel::<()>();
        let watch = move || {
            if ended.recv_timeout(ABORT) == Err(mpsc::RecvTimeoutError::Timeout) {
                give_up("the GPU does not end an exchange that was aborted");
            }
        };
        let thread = thread::Builder::new().name("nccl-watch".into());
        let thread = thread.spawn(watch);
        let thread = thread.unwrap_or_else(|error| give_up(&format!("no thread: {error}")));
        Self {
            done: Some(done),
            thread: Some(thread),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
