//! The compiled kernels, by name.

#![allow(unsafe_code, reason = "kernel parameters are passed as bytes")]

use std::{collections::HashMap, ffi::c_void, sync::Mutex};

use super::{
    attention,
    driver::{Context, Function, Grid, Module, Stream},
    lock, product,
};
use crate::{Error, Result};

/// One fat binary a file of `kernels/`.
static BINARIES: &[&[u8]] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Kernels with dynamic shared memory, and how much of their own they have besides.
const SAMPLE: (&str, usize) = ("sample", 12 << 10);
const PRODUCTS: [&str; 6] = [
    "linear_many2_f32",
    "linear_many2_bf16",
    "linear_many3_f32",
    "linear_many3_bf16",
    "linear_many4_f32",
    "linear_many4_bf16",
];

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
    /// Shared memory that a block may have.
    shared: usize,
}

impl Kernels {
    /// Kernels for a GPU whose blocks may have `shared` bytes of shared memory, and which may be of the `hopper` generation.
    pub(super) fn load(context: &Context, shared: usize, hopper: bool) -> Result<Self> {
        let modules = BINARIES
            .iter()
            .map(|image| Function::module(context, image));
        let this = Self {
            modules: modules.collect::<Result<_>>()?,
            found: Mutex::default(),
            shared,
        };
        this.get(SAMPLE.0)?.allow_shared(this.sample_shared())?;
        for name in PRODUCTS {
            this.get(name)?.allow_shared(this.product_shared())?;
        }
        if hopper {
            for (name, bytes) in product::shared() {
                this.get(name)?.allow_shared(bytes)?;
            }
            for (name, registers) in product::registers() {
                let found = this.get(name)?.registers()?;
                if found != registers {
                    return Err(Error::Unsupported {
                        what: format!("kernel {name}"),
                        reason: format!("it has {found} registers a thread, {registers} needed"),
                    });
                }
            }
            for (name, bytes) in attention::shared() {
                this.get(&name)?.allow_shared(bytes)?;
            }
        }
        Ok(this)
    }

    /// Dynamic shared memory that `sample` may have.
    pub(super) fn sample_shared(&self) -> usize {
        self.shared.saturating_sub(SAMPLE.1)
    }

    /// Dynamic shared memory that products of many rows may have.
    pub(super) fn product_shared(&self) -> usize {
        self.shared
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
