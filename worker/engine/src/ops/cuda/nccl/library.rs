//! NCCL as it is installed: loaded when a rank first needs it.
//!
//! The types are cudarc's. Its loader is not used: it looks for names that NCCL 2 does not have, and panics without one.

#![allow(unsafe_code, reason = "the library is called through its C interface")]

use std::{
    env,
    ffi::{CStr, c_char, c_int, c_void},
    fs,
    ptr::null,
    sync::OnceLock,
};

use cudarc::{
    driver::sys::CUstream,
    nccl::sys::{ncclComm_t, ncclConfig_t, ncclUniqueId},
};
use libloading::Library as Dynamic;

use crate::{Error, Result};

/// What the library is called.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// The first version whose configuration is cudarc's.
const OLDEST: c_int = 22_200;
/// Marks a configuration as one, and a setting as not set.
const MAGIC: u32 = 0xcafe_beef;
const UNSET: c_int = c_int::MIN;
/// `ncclFloat32`.
pub(super) const F32: c_int = 7;
/// Results that are no errors: done, and still under way.
pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
/// Whether NCCL uses NVLink multicast.
const MULTICAST: &str = "NCCL_NVLS_ENABLE";

/// NCCL's functions. Results are plain numbers: there may be more of them than cudarc knows.
pub(super) struct Library {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(ncclComm_t) -> *const c_char,
    pub init_rank: unsafe extern "C" fn(
        *mut ncclComm_t,
        c_int,
        ncclUniqueId,
        c_int,
        *mut ncclConfig_t,
    ) -> c_int,
    pub async_error: unsafe extern "C" fn(ncclComm_t, *mut c_int) -> c_int,
    pub all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        ncclComm_t,
        CUstream,
    ) -> c_int,
    pub abort: unsafe extern "C" fn(ncclComm_t) -> c_int,
    /// Never unloaded.
    _dynamic: Dynamic,
}

/// Keeps NCCL from using NVLink multicast, for as long as the process lives: a program that ends in the midst of it can
/// put the GPUs of its machine out of service. Groups of GPUs are refused otherwise.
///
/// # Errors
/// [`Error::Unsupported`] if the process has started threads already: the environment is theirs too.
pub fn forbid_multicast() -> Result<()> {
    if is_multicast_forbidden() {
        return Ok(());
    }
    let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return Err(unsupported(format!(
            "{MULTICAST}=0 has to be set before the process has threads; it has {threads}"
        )));
    }
    // SAFETY: there is no other thread that could read or write the environment.
    unsafe { env::set_var(MULTICAST, "0") };
    Ok(())
}

fn is_multicast_forbidden() -> bool {
    env::var_os(MULTICAST).is_some_and(|value| value == "0")
}

fn unsupported(reason: String) -> Error {
    Error::Unsupported {
        what: "tensor parallelism over NCCL".into(),
        reason,
    }
}

impl Library {
    /// The library, which stays loaded.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it is not there or too old, or may use multicast.
    pub(super) fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        if !is_multicast_forbidden() {
            return Err(unsupported(format!(
                "NVLink multicast is to be off: set {MULTICAST}=0"
            )));
        }
        let library = LIBRARY.get_or_init(Self::load).as_ref();
        library.map_err(|reason| unsupported(reason.clone()))
    }

    fn load() -> Result<Self, String> {
        let mut missing = String::new();
        for name in NAMES {
            // SAFETY: NCCL does nothing when it is loaded.
            match unsafe { Dynamic::new(name) } {
                // SAFETY: it is NCCL, by its name.
                Ok(dynamic) => return unsafe { Self::of(dynamic) },
                Err(error) => missing += &format!("; {error}"),
            }
        }
        Err(format!(
            "there is no libnccl.so.2 on LD_LIBRARY_PATH{missing}"
        ))
    }

    /// # Safety
    /// `dynamic` is NCCL.
    unsafe fn of(dynamic: Dynamic) -> Result<Self, String> {
        /// # Safety
        /// The function called `name` is of type `T`.
        unsafe fn function<T: Copy>(dynamic: &Dynamic, name: &str) -> Result<T, String> {
            // SAFETY: the caller's promise.
            let function = unsafe { dynamic.get::<T>(name) };
            function
                .map(|function| *function)
                .map_err(|error| error.to_string())
        }
        // SAFETY: types are those of nccl.h.
        let library = unsafe {
            Self {
                version: function(&dynamic, "ncclGetVersion")?,
                unique_id: function(&dynamic, "ncclGetUniqueId")?,
                error_string: function(&dynamic, "ncclGetErrorString")?,
                last_error: function(&dynamic, "ncclGetLastError")?,
                init_rank: function(&dynamic, "ncclCommInitRankConfig")?,
                async_error: function(&dynamic, "ncclCommGetAsyncError")?,
                all_gather: function(&dynamic, "ncclAllGather")?,
                abort: function(&dynamic, "ncclCommAbort")?,
                _dynamic: dynamic,
            }
        };
        let mut version = 0;
        // SAFETY: writes one number.
        let code = unsafe { (library.version)(&mut version) };
        if code != SUCCESS || version < OLDEST {
            return Err(format!("NCCL {version} is older than {OLDEST}"));
        }
        tracing::info!(version, "NCCL is loaded");
        Ok(library)
    }

    /// Names a new group of ranks, of which this process tells the others.
    ///
    /// # Errors
    /// [`Error::GroupLost`] with what NCCL says.
    pub(super) fn unique_id(&self) -> Result<ncclUniqueId> {
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: writes one id.
        let code = unsafe { (self.unique_id)(&mut id) };
        match code {
            SUCCESS => Ok(id),
            code => Err(self.error("naming a group", code)),
        }
    }

    /// Communicators whose calls return at once.
    pub(super) fn config(&self) -> ncclConfig_t {
        ncclConfig_t {
            size: size_of::<ncclConfig_t>(),
            magic: MAGIC,
            version: OLDEST.unsigned_abs(),
            blocking: 0,
            cgaClusterSize: UNSET,
            minCTAs: UNSET,
            maxCTAs: UNSET,
            netName: null(),
            splitShare: UNSET,
        }
    }

    /// What NCCL says of a result, and of what came before it.
    pub(super) fn error(&self, what: &str, code: c_int) -> Error {
        let text = |text: *const c_char| match text.is_null() {
            true => String::new(),
            // SAFETY: NCCL's texts are C strings that stay.
            false => unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned(),
        };
        // SAFETY: takes any number.
        let name = text(unsafe { (self.error_string)(code) });
        // SAFETY: takes no communicator, too.
        let last = text(unsafe { (self.last_error)(std::ptr::null_mut()) });
        let reason = format!("NCCL: {what}: {name} ({})", last.trim());
        Error::GroupLost(reason)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn multicast_can_only_be_forbidden_while_nothing_else_runs() {
        if is_multicast_forbidden() {
            return forbid_multicast().expect("that is so already");
        }
        thread::scope(|scope| {
            let (_held, hold) = mpsc::channel::<()>();
            scope.spawn(move || hold.recv());
            let refused = forbid_multicast().expect_err("threads").to_string();
            let reason = "before the process has threads";
            assert!(refused.contains(reason), "{refused}");
            let refused = Library::get().err().expect("multicast").to_string();
            assert!(refused.contains("set NCCL_NVLS_ENABLE=0"), "{refused}");
        });
    }
}
