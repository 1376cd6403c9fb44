//! The CUDA backend of the backbone: weights and activations in `bf16` (or `f32`, to compare with references), sums in
//! `f32`.
//!
//! The kernels are in `kernels/`, one file an operation; what they reduce, and in which order, is written there. Everything
//! of a device happens on one stream. Operations only launch; a step that does nothing else is recorded as a graph the
//! second time a step of its shape comes, and played from then on.

mod ahead;
mod attention;
mod buffer;
mod chunks;
mod device;
mod driver;
mod embed;
mod gather;
mod kernels;
mod kv;
mod linear;
mod matrix;
mod nccl;
mod peer;
mod plan;
mod product;
mod residual;
mod sample;
mod step;
mod table;
mod timing;
mod transformer;
mod upload;
mod wait;

use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::ThreadId,
};

pub use buffer::{Buffer, Vector};
pub use kv::Kv;
pub use matrix::Matrix;
pub use nccl::forbid_multicast;
pub use step::Rows;
pub use table::Table;

use buffer::{Element, Pending, RowScales, Sums, want};
use driver::{Context, Event, Memory, Stream};
use kernels::{Argument, Kernels};
use upload::Uploader;

use crate::{Error, Result};

/// Types of weights, activations and cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// All in `bf16`.
    Bf16,
    /// All in `f32`, without tensor cores.
    F32,
}

/// Changes whenever a kernel's results may.
const KERNELS_VERSION: u32 = 5;

/// One GPU.
#[derive(Debug)]
pub struct Cuda {
    // Dropped in this order.
    kernels: Kernels,
    uploader: Mutex<Uploader>,
    workspaces: Mutex<HashMap<ThreadId, Vec<Memory>>>,
    frequencies: Mutex<Vec<(u64, usize, Memory)>>,
    profile: Mutex<Option<Vec<(String, Event, Event)>>>,
    stream: Stream,
    context: Arc<Context>,
    precision: Precision,
    /// Whether a kernel is set up while the one before it ends: only machine code for Hopper waits for that by itself.
    dependent: bool,
    /// Whether the next kernel is set up only once all that was launched has ended.
    apart: Mutex<bool>,
    /// Whether ranks exchange through NCCL where they could do so directly.
    only_nccl: AtomicBool,
    /// Steps recorded.
    recorded: AtomicUsize,
    multiprocessors: usize,
    capability: (usize, usize),
    /// Whether it has what the kernels for `sm_90a` need.
    hopper: bool,
}

/// Poisoning says nothing about what these locks guard.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses a call of `op` unless `got >= needed`.
fn need(op: &str, what: &str, got: usize, needed: usize) -> Result<()> {
    if got >= needed {
        return Ok(());
    }
    Err(mismatch(
        op,
        format!("{what} has {got} values, {needed} needed"),
    ))
}

/// A call of `op` that cannot be.
fn mismatch(op: &str, reason: String) -> Error {
    Error::Unsupported {
        what: op.to_owned(),
        reason,
    }
}

impl Cuda {
    /// GPU `ordinal`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is no driver or no such GPU, or if it is older than the kernels.
    pub fn open(ordinal: usize, precision: Precision) -> Result<Self> {
        use cudarc::driver::sys::CUdevice_attribute as Attribute;
        let context = Context::open(ordinal)?;
        let of = |attribute| context.attribute(attribute);
        let major = of(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = of(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if major < 8 {
            return Err(Error::Unsupported {
                what: format!("GPU {ordinal} ({})", context.name()?),
                reason: format!("compute capability {major}.{minor}; 8.0 or later is needed"),
            });
        }
        let stream = Stream::new(&context)?;
        let hopper = (major, minor) == (9, 0);
        Ok(Self {
            kernels: Kernels::load(
                &context,
                of(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
                hopper,
            )?,
            hopper,
            uploader: Mutex::new(Uploader::default()),
            workspaces: Mutex::default(),
            frequencies: Mutex::default(),
            profile: Mutex::default(),
            multiprocessors: of(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            stream,
            precision,
            dependent: hopper,
            apart: Mutex::default(),
            only_nccl: AtomicBool::default(),
            recorded: AtomicUsize::default(),
            capability: (major, minor),
            context,
        })
    }

    /// The GPU's name.
    ///
    /// # Errors
    /// [`Error::GroupLost`] with what the driver says.
    pub fn name(&self) -> Result<String> {
        self.context.name()
    }

    /// What decides about the bits of a result: the GPU's generation, the types, the kernels.
    pub fn numerics(&self) -> String {
        let (major, minor) = self.capability;
        let types = self.element().suffix();
        format!("{types}-cuda-{major}.{minor}-{KERNELS_VERSION}")
    }

    /// Free and total bytes of the GPU.
    ///
    /// # Errors
    /// [`Error::GroupLost`] with what the driver says.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.memory()
    }

    /// Has ranks exchange through NCCL, also where GPUs of one process reach each other's memory.
    pub fn exchange_through_nccl(&self) {
        self.only_nccl.store(true, Ordering::Relaxed);
    }

    /// Types of weights and activations.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Steps that were recorded so far, in every epoch anew.
    pub fn recorded(&self) -> usize {
        self.recorded.load(Ordering::Relaxed)
    }

    /// Waits for everything that was launched.
    ///
    /// # Errors
    /// [`Error::GroupLost`] with what the driver says.
    pub fn wait(&self) -> Result<()> {
        self.stream.wait()
    }

    /// The type of weights and of what products read.
    fn element(&self) -> Element {
        match self.precision {
            Precision::Bf16 => Element::Bf16,
            Precision::F32 => Element::F32,
        }
    }

    /// `bytes` bytes for use by the calling thread's next operation (ranks on other threads may launch in between).
    /// Recorded steps keep what they were recorded with, so nothing is ever given back.
    fn workspace(&self, bytes: usize) -> Result<cudarc::driver::sys::CUdeviceptr> {
        let mut workspaces = lock(&self.workspaces);
        let own = workspaces.entry(std::thread::current().id()).or_default();
        match own.last() {
            Some(last) if last.bytes() >= bytes => Ok(last.address()),
            _ => {
                let memory = Memory::new(&self.context, bytes, "partial sums")?;
                let address = memory.address();
                own.push(memory);
                Ok(address)
            }
        }
    }

    /// Whether it makes products with weights in tiles.
    fn tiled(&self) -> bool {
        self.hopper && self.precision == Precision::Bf16
    }

    /// Launches a kernel; `waits` says that it calls `wait_previous` before it reads what kernels before it wrote (or knows otherwise
    /// that this is there), so that it may be set up early.
    fn launch(
        &self,
        name: &str,
        grid: [usize; 3],
        block: [usize; 2],
        shared: usize,
        waits: bool,
        arguments: &[&dyn Argument],
    ) -> Result<()> {
        self.launch_as(
            || name.to_owned(),
            name,
            grid,
            block,
            shared,
            waits,
            arguments,
        )
    }

    /// The same for a kernel that is profiled as `label`.
    #[expect(clippy::too_many_arguments, reason = "a launch and a label")]
    fn launch_as(
        &self,
        label: impl FnOnce() -> String,
        name: &str,
        grid: [usize; 3],
        block: [usize; 2],
        shared: usize,
        waits: bool,
        arguments: &[&dyn Argument],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let size = driver::Grid {
            grid,
            block,
            shared,
        };
        let function = self.kernels.get(name)?;
        // Kept until the launch: other threads may launch in between.
        let mut apart = lock(&self.apart);
        let alone = mem::take(&mut *apart) || self.profiles();
        let dependent = waits && self.dependent && !alone;
        self.profiled(label, || {
            kernels::launch(&self.stream, name, function, size, dependent, arguments)
        })
    }

    /// Has the next kernel set up only once all that was launched has ended.
    fn set_apart(&self) {
        *lock(&self.apart) = true;
    }

    /// Launches the first kernel after one that was [set apart](Self::set_apart): since it waits itself before it lets any start, it may
    /// be set up like others.
    fn launch_first(
        &self,
        name: &str,
        grid: [usize; 3],
        block: [usize; 2],
        arguments: &[&dyn Argument],
    ) -> Result<()> {
        if !grid.contains(&0) {
            *lock(&self.apart) = false;
        }
        self.launch(name, grid, block, 0, true, arguments)
    }

    /// Blocks of 256 threads that keep the GPU busy with `items` items.
    fn blocks(&self, items: usize) -> usize {
        items.div_ceil(256).min(self.multiprocessors * 8).max(1)
    }
}
