//! The compiled kernels, by name.

#![allow(unsafe_code)]

use std::{collections::HashMap, ffi::c_void, sync::Mutex};

use super::{
    driver::{Context, Function, Grid, Module, Stream},
    lock,
};
use crate::{Error, Result};

/// One fat binary a file of `kernels/`.
static BINARIES: &[&[u8]] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Dynamic shared memory that the sampler may have for its scores.
pub(super) const SAMPLE_SHARED: usize = 192 << 10;
/// The same before Hopper, whatever the GPU.
const LEAST_SAMPLE_SHARED: usize = 96 << 10;

/// A kernel parameter, passed by value.
///
/// # Safety
/// The type has the layout of the parameter in the kernel's source.
pub(super) unsafe trait Argument {}
// SAFETY: C's `int`, `float`, `size_t` and pointers.
unsafe impl Argument for i32 {}
// SAFETY: as above.
unsafe impl Argument for f32 {}
// SAFETY: as above.
unsafe impl Argument for u64 {}
// SAFETY: as above.
unsafe impl Argument for usize {}

#[derive(Debug)]
pub(super) struct Kernels {
    modules: Vec<Module>,
    found: Mutex<HashMap<String, Function>>,
    /// Dynamic shared memory that `sample` was allowed.
    sample_shared: usize,
}

impl Kernels {
    pub(super) fn load(context: &Context) -> Result<Self> {
        let modules = BINARIES
            .iter()
            .map(|image| Function::module(context, image));
        let mut this = Self {
            modules: modules.collect::<Result<_>>()?,
            found: Mutex::default(),
            sample_shared: 0,
        };
        let sample = this.get("sample")?;
        for bytes in [SAMPLE_SHARED, LEAST_SAMPLE_SHARED] {
            if sample.allow_shared(bytes).is_ok() {
                this.sample_shared = bytes;
                break;
            }
        }
        Ok(this)
    }

    pub(super) fn sample_shared(&self) -> usize {
        self.sample_shared
    }

    pub(super) fn get(&self, name: &str) -> Result<Function> {
        let mut found = lock(&self.found);
        if let Some(&function) = found.get(name) {
            return Ok(function);
        }
        let function = self.modules.iter().find_map(|module| module.function(name));
        let function = function.ok_or_else(|| Error::Unsupported {
            what: format!("kernel {name}"),
            reason: "not among those that were built".into(),
        })?;
        found.insert(name.to_owned(), function);
        Ok(function)
    }
}

/// Launches `function` with `arguments` in order of the kernel's parameters.
pub(super) fn launch(
    stream: &Stream,
    name: &str,
    function: Function,
    size: Grid,
    dependent: bool,
    arguments: &[&dyn Argument],
) -> Result<()> {
    let mut pointers: Vec<*mut c_void> = arguments
        .iter()
        .map(|argument| std::ptr::from_ref(*argument).cast_mut().cast())
        .collect();
    // SAFETY: an `Argument` has its parameter's layout; callers check sizes against buffers before they launch.
    unsafe { stream.launch(name, function, size, dependent, &mut pointers) }
}
