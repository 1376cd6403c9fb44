//! What the backend needs of the CUDA driver, with owners for everything that has to be freed.

#![allow(unsafe_code, reason = "the driver is called through its C interface")]

mod memory;
mod stream;
mod tensor_map;

use std::{ffi::c_int, sync::Arc};

use cudarc::driver::{
    DriverError, result,
    sys::{self, CUresult},
};

pub(super) use memory::{Memory, Pinned};
pub(super) use stream::{Event, Function, Graph, Grid, Module, Stream};
pub(super) use tensor_map::TensorMap;

use crate::{Error, Result};

/// Status of a process that ends because its CUDA context is of no use any more.
const STICKY_STATUS: i32 = 70;

/// Turns a driver's error into the engine's. After an error that poisons the context nothing of it works again: the
/// process ends with the reason, and is started anew by whoever watches it.
pub(super) fn check<T>(what: &str, result: Result<T, DriverError>) -> Result<T> {
    result.map_err(|error| {
        let reason = format!("CUDA: {what}: {error}");
        if sticky(error.0) {
            give_up(&reason);
        }
        Error::GroupLost(reason)
    })
}

/// Ends a process that can do nothing more with its GPU.
pub(super) fn give_up(reason: &str) -> ! {
    tracing::error!(reason, "the GPU context is lost");
    eprintln!("error: {reason}");
    std::process::exit(STICKY_STATUS);
}

fn sticky(code: CUresult) -> bool {
    matches!(
        code,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_CONTAINED
    )
}

/// The primary context of one GPU.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: a context may be used by any thread that makes it current.
unsafe impl Send for Context {}
// SAFETY: likewise; the driver locks it.
unsafe impl Sync for Context {}

impl Context {
    /// The context of GPU `ordinal`.
    pub(super) fn open(ordinal: usize) -> Result<Arc<Self>> {
        let refuse = |reason: String| Error::Unsupported {
            what: "--device cuda".into(),
            reason,
        };
        // SAFETY: only looks for the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(refuse(
                "this machine has no NVIDIA driver (libcuda.so)".into(),
            ));
        }
        result::init().map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_NO_DEVICE => refuse("no GPU (see CUDA_VISIBLE_DEVICES)".into()),
            _ => refuse(format!("the NVIDIA driver: {error}")),
        })?;
        let count = check("counting devices", result::device::get_count())?;
        let device = c_int::try_from(ordinal)
            .ok()
            .filter(|&ordinal| ordinal < count)
            .map(result::device::get)
            .ok_or_else(|| refuse(format!("no GPU {ordinal}: {count} found")))?;
        let device = check("opening the device", device)?;
        // SAFETY: the device is valid.
        let context = check("opening the context", unsafe {
            result::primary_ctx::retain(device)
        })?;
        let this = Arc::new(Self { device, context });
        this.bind()?;
        Ok(this)
    }

    /// Makes the context the calling thread's.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        check("binding the context", unsafe {
            result::ctx::set_current(self.context)
        })
    }

    pub(super) fn name(&self) -> Result<String> {
        check("reading the name", result::device::get_name(self.device))
    }

    pub(super) fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<usize> {
        // SAFETY: the device is valid.
        let value = unsafe { result::device::get_attribute(self.device, attribute) };
        Ok(usize::try_from(check("reading an attribute", value)?).unwrap_or(0))
    }

    /// Whether kernels here reach memory of `other`, another device; if so, from now on they do.
    pub(super) fn reaches(&self, other: &Self) -> Result<bool> {
        let mut can = 0;
        // SAFETY: both devices are valid.
        check("looking at a peer", unsafe {
            sys::cuDeviceCanAccessPeer(&mut can, self.device, other.device).result()
        })?;
        if can == 0 {
            return Ok(false);
        }
        self.bind()?;
        // SAFETY: the context is valid.
        match unsafe { sys::cuCtxEnablePeerAccess(other.context, 0).result() } {
            Err(error) if error.0 == CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(true),
            enabled => check("reaching a peer", enabled).map(|()| true),
        }
    }

    /// Free and total bytes.
    pub(super) fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        check("reading the memory's size", result::mem_get_info())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `open`; what was made in it holds an `Arc` of it.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}
