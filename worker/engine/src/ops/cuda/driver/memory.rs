//! Memory of the device, and memory of the host that it can reach.

#![allow(unsafe_code, reason = "the driver is called through its C interface")]

use std::{ffi::c_uint, sync::Arc};

use cudarc::driver::{
    DriverError, result,
    sys::{self, CUresult},
};

use super::{Context, check};
use crate::{Error, Result};

/// Device memory.
#[derive(Debug)]
pub(in crate::ops::cuda) struct Memory {
    context: Arc<Context>,
    pub(super) address: sys::CUdeviceptr,
    pub(super) bytes: usize,
}

impl Memory {
    /// `bytes` uninitialised bytes; at least one.
    ///
    /// # Errors
    /// [`Error::Capacity`] with what there is and what was needed.
    pub(in crate::ops::cuda) fn new(
        context: &Arc<Context>,
        bytes: usize,
        what: &'static str,
    ) -> Result<Self> {
        context.bind()?;
        // SAFETY: freed in `drop`.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(Self {
                context: context.clone(),
                address,
                bytes,
            }),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = context.memory()?;
                Err(Error::Capacity {
                    what: "GPU memory",
                    limit: format!("{} MiB free of {} MiB", free >> 20, total >> 20),
                    needed: format!("{} MiB for {what}", bytes.div_ceil(1 << 20)),
                    retry_after: None,
                })
            }
            Err(error) => check("allocating", Err(error)),
        }
    }

    pub(in crate::ops::cuda) fn address(&self) -> sys::CUdeviceptr {
        self.address
    }

    pub(in crate::ops::cuda) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated in `new`; the driver waits for kernels that use it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Pinned host memory of 32-bit words, which kernels can read and write.
#[derive(Debug)]
pub(in crate::ops::cuda) struct Pinned {
    context: Arc<Context>,
    first: *mut u32,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}
// SAFETY: writing takes `&mut self`.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(in crate::ops::cuda) fn new(context: &Arc<Context>, len: usize) -> Result<Self> {
        context.bind()?;
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: freed in `drop`.
        let first = check("pinning host memory", unsafe {
            result::malloc_host(len.max(1) * 4, flags as c_uint)
        })?;
        let first = first.cast::<u32>();
        // SAFETY: `len` words were allocated.
        unsafe { first.write_bytes(0, len) };
        Ok(Self {
            context: context.clone(),
            first,
            len,
        })
    }

    /// The words. Those that a kernel or a copy may be reading are not to be written.
    pub(in crate::ops::cuda) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: allocated and initialised in `new`, and `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }

    /// Sets a word that kernels only read.
    pub(in crate::ops::cuda) fn set(&self, index: usize, value: u32) {
        assert!(index < self.len);
        // SAFETY: inside; kernels read it as it is at any moment.
        unsafe { self.first.add(index).write_volatile(value) }
    }

    /// One word that a kernel may have written.
    pub(in crate::ops::cuda) fn read(&self, index: usize) -> u32 {
        assert!(index < self.len);
        // SAFETY: inside; written by a device that is done with it.
        unsafe { self.first.add(index).read_volatile() }
    }

    /// Where kernels find the words: unified addressing gives host and device one address.
    pub(in crate::ops::cuda) fn address(&self) -> sys::CUdeviceptr {
        self.first as sys::CUdeviceptr
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated in `new`.
            let _ = unsafe { result::free_host(self.first.cast()) };
        }
    }
}
