//! The CUDA backend of the backbone: weights and activations in `bf16` (or `f32`, to compare with references), sums in
//! `f32`.
//!
//! The kernels are in `kernels/`, one file an operation; what they reduce, and in which order, is written there. Everything
//! of a device happens on one stream. Operations only launch; a step that does nothing else is recorded as a graph the
//! second time a step of its shape comes, and played from then on.

mod attention;
mod driver;
mod gather;
mod kernels;
mod kv;
mod matrix;
mod nccl;
mod plan;
mod product;
mod sample;
mod step;
mod transformer;
mod upload;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::ThreadId,
};

pub use kv::Kv;
pub use matrix::{Matrix, Table};
pub use nccl::forbid_multicast;
pub use step::Rows;

use driver::{Context, Event, Memory, Stream};
use kernels::{Argument, Kernels};
use upload::Uploader;

use crate::{
    Error, Result,
    checkpoint::HostTensor,
    ops::{Device, MatrixPart},
};

/// Types of weights, activations and cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// All in `bf16`.
    Bf16,
    /// All in `f32`, without tensor cores.
    F32,
}

/// Changes whenever a kernel's results may.
const KERNELS_VERSION: u32 = 2;

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
    /// Whether a kernel is set up while the one before it ends.
    dependent: bool,
    /// Whether an exchange comes before the next kernel, which then waits for all of it.
    exchanged: AtomicBool,
    /// Steps recorded.
    recorded: AtomicUsize,
    multiprocessors: usize,
    capability: (usize, usize),
    /// Whether it has what the kernels for `sm_90a` need.
    hopper: bool,
}

/// Element type of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F32,
    Bf16,
}

impl Element {
    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// How kernels over it are called.
    fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Activations on the device.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    len: usize,
    element: Element,
    /// Where the values are, if they are not in `memory` yet.
    pending: Option<Pending>,
    /// Room for planes. Recorded steps keep the room that they were recorded with, so nothing is ever given back.
    rooms: Vec<Memory>,
}

/// Planes `[count, rows, width]` in f32, of which the sum (as a balanced tree) and the bias are values of a buffer.
#[derive(Debug, Clone, Copy)]
struct Pending {
    planes: u64,
    bias: u64,
    count: usize,
    rows: usize,
    width: usize,
}

/// `struct Sums` of `kernels/common.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Sums {
    planes: u64,
    bias: u64,
    stride: usize,
    count: i32,
}

#[allow(unsafe_code)]
mod layouts {
    // SAFETY: fields and order are those of the kernels' struct.
    unsafe impl super::Argument for super::Sums {}
}

impl Sums {
    const NONE: Self = Self {
        planes: 0,
        bias: 0,
        stride: 0,
        count: 0,
    };
}

impl Buffer {
    /// Room for `bytes` of planes.
    fn planes(&mut self, cuda: &Cuda, bytes: usize) -> Result<u64> {
        if let Some(room) = self.rooms.last().filter(|room| room.bytes() >= bytes) {
            return Ok(room.address());
        }
        let room = Memory::new(&cuda.context, bytes, "partial sums")?;
        let address = room.address();
        self.rooms.push(room);
        Ok(address)
    }

    /// The values of an f32 buffer, for a kernel that adds them up.
    fn sums(&self) -> Sums {
        match self.pending {
            None => Sums {
                planes: self.memory.address(),
                count: 1,
                ..Sums::NONE
            },
            Some(pending) => Sums {
                planes: pending.planes,
                bias: pending.bias,
                stride: pending.rows * pending.width,
                count: pending.count as i32,
            },
        }
    }
}

/// Per-channel parameters on the device, in `f32`.
#[derive(Debug)]
pub struct Vector {
    memory: Memory,
    len: usize,
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

/// Refuses a buffer of another type, or with fewer values.
fn want(op: &str, what: &str, buffer: &Buffer, element: Element, len: usize) -> Result<()> {
    if buffer.element != element {
        return Err(mismatch(
            op,
            format!("{what} is {:?}, not {element:?}", buffer.element),
        ));
    }
    need(op, what, buffer.len, len)
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
            dependent: major >= 9,
            exchanged: AtomicBool::default(),
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

    /// The time of every kernel that `work` launches (one at a time, no step played from a recording): names and milliseconds, in order.
    ///
    /// # Errors
    /// As `work`.
    pub fn profile(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<(String, f32)>> {
        *lock(&self.profile) = Some(Vec::new());
        let worked = work().and_then(|()| self.stream.wait());
        let events = lock(&self.profile).take().unwrap_or_default();
        worked?;
        let time = |(name, start, end): (String, Event, Event)| Ok((name, end.since(&start)?));
        events.into_iter().map(time).collect()
    }

    /// Whether kernels are being timed, so that a step has to launch each of them.
    fn profiles(&self) -> bool {
        lock(&self.profile).is_some()
    }

    /// Milliseconds that what `work` launches takes on the device, one thing after the other.
    ///
    /// # Errors
    /// As `work`.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        let (start, end) = (Event::timed(&self.context)?, Event::timed(&self.context)?);
        self.stream.record_event(&start)?;
        work()?;
        self.stream.record_event(&end)?;
        self.stream.wait()?;
        end.since(&start)
    }

    /// Bytes a second that reading a buffer larger than any cache moves: the median of `times`.
    ///
    /// # Errors
    /// [`Error::Capacity`] if there is no memory for it.
    pub fn read_bandwidth(&self, bytes: usize, times: usize) -> Result<f64> {
        let memory = Memory::new(&self.context, bytes / 16 * 16, "measuring the bandwidth")?;
        let out = Memory::new(&self.context, 4, "measuring the bandwidth")?;
        // Every word other than the last: memory that is all alike may be read faster.
        let pattern: Vec<u32> = (0..1u32 << 20)
            .map(|i| i.wrapping_mul(0x9e37_79b9))
            .collect();
        for offset in (0..memory.bytes()).step_by(pattern.len() * 4) {
            let len = pattern.len().min((memory.bytes() - offset) / 4);
            self.stream.upload(&pattern[..len], &memory, offset)?;
        }
        let mut rates = Vec::new();
        for _ in 0..times.max(1) {
            let milliseconds = self.time(|| {
                self.launch(
                    "stream_read",
                    [self.multiprocessors * 4, 1, 1],
                    [512, 1],
                    0,
                    false,
                    &[&memory.address(), &(memory.bytes() / 16), &out.address()],
                )
            })?;
            rates.push(memory.bytes() as f64 / f64::from(milliseconds) * 1e3);
        }
        rates.sort_by(f64::total_cmp);
        Ok(rates[rates.len() / 2])
    }

    /// The type of weights and of what products read.
    fn element(&self) -> Element {
        match self.precision {
            Precision::Bf16 => Element::Bf16,
            Precision::F32 => Element::F32,
        }
    }

    fn typed(&self, len: usize, element: Element) -> Result<Buffer> {
        let memory = Memory::new(&self.context, len * element.size(), "activations")?;
        self.stream.zero(&memory)?;
        Ok(Buffer {
            memory,
            len,
            element,
            pending: None,
            rooms: Vec::new(),
        })
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

    /// Launches by `launch`, timed if kernels are.
    fn profiled(
        &self,
        label: impl FnOnce() -> String,
        launch: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut profile = lock(&self.profile);
        let Some(events) = &mut *profile else {
            return launch();
        };
        let (start, end) = (Event::timed(&self.context)?, Event::timed(&self.context)?);
        self.stream.record_event(&start)?;
        launch()?;
        self.stream.record_event(&end)?;
        events.push((label(), start, end));
        Ok(())
    }

    /// Launches a kernel; `waits` says that it begins with `wait_previous`, so that it may be set up early.
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
        let alone = self.exchanged.swap(false, Ordering::Relaxed) || self.profiles();
        let dependent = waits && self.dependent && !alone;
        self.profiled(label, || {
            kernels::launch(&self.stream, name, function, size, dependent, arguments)
        })
    }

    /// Brings the values of `buffer` into its memory.
    fn settle(&self, buffer: &Buffer) -> Result<()> {
        match buffer.pending {
            Some(pending) => self.finish(pending, buffer),
            None => Ok(()),
        }
    }

    /// Blocks of 256 threads that keep the GPU busy with `items` items.
    fn blocks(&self, items: usize) -> usize {
        items.div_ceil(256).min(self.multiprocessors * 8).max(1)
    }
}

impl Device for Cuda {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Vector = Vector;

    fn buffer(&self, len: usize) -> Result<Buffer> {
        self.typed(len, Element::F32)
    }

    fn upload(&self, values: &[f32]) -> Result<Buffer> {
        let mut buffer = self.buffer(values.len())?;
        self.write(values, &mut buffer)?;
        Ok(buffer)
    }

    fn download(&self, buffer: &Buffer) -> Result<Vec<f32>> {
        self.read(buffer, buffer.len)
    }

    fn read(&self, buffer: &Buffer, len: usize) -> Result<Vec<f32>> {
        need("read", "buffer", buffer.len, len)?;
        self.settle(buffer)?;
        let mut values = vec![0.0; len];
        if buffer.element == Element::F32 {
            self.stream.download(&buffer.memory, 0, &mut values)?;
            return Ok(values);
        }
        let wide = self.buffer(len)?;
        let arguments: [&dyn Argument; 3] = [
            &buffer.memory.address(),
            &wide.memory.address(),
            &(len as i32),
        ];
        self.launch(
            "widen",
            [self.blocks(len), 1, 1],
            [256, 1],
            0,
            false,
            &arguments,
        )?;
        self.stream.download(&wide.memory, 0, &mut values)?;
        Ok(values)
    }

    fn write(&self, values: &[f32], buffer: &mut Buffer) -> Result<()> {
        need("write", "buffer", buffer.len, values.len())?;
        buffer.pending = None;
        if buffer.element == Element::F32 {
            return self.stream.upload(values, &buffer.memory, 0);
        }
        let wide = self.upload(values)?;
        let len = values.len();
        let arguments: [&dyn Argument; 3] = [
            &wide.memory.address(),
            &buffer.memory.address(),
            &(len as i32),
        ];
        self.launch(
            "narrow",
            [self.blocks(len), 1, 1],
            [256, 1],
            0,
            false,
            &arguments,
        )
    }

    fn copy_rows(
        &self,
        src: &Buffer,
        src_row: usize,
        dst: &mut Buffer,
        dst_row: usize,
        rows: usize,
        width: usize,
    ) -> Result<()> {
        need("copy_rows", "src", src.len, (src_row + rows) * width)?;
        need("copy_rows", "dst", dst.len, (dst_row + rows) * width)?;
        if src.element != dst.element {
            return Err(mismatch("copy_rows", "buffers of two types".into()));
        }
        self.settle(src)?;
        self.settle(dst)?;
        dst.pending = None;
        let bytes = |values: usize| values * src.element.size();
        self.stream.copy(
            &src.memory,
            bytes(src_row * width),
            &dst.memory,
            bytes(dst_row * width),
            bytes(rows * width),
        )
    }

    fn matrix(&self, parts: &[MatrixPart]) -> Result<Matrix> {
        Matrix::new(self, parts)
    }

    fn vector(&self, parts: &[HostTensor]) -> Result<Vector> {
        let values: Vec<f32> = parts.iter().flat_map(HostTensor::to_f32).collect();
        let memory = Memory::new(&self.context, values.len() * 4, "parameters")?;
        self.stream.upload(&values, &memory, 0)?;
        Ok(Vector {
            memory,
            len: values.len(),
        })
    }

    fn linear(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        bias: Option<&Vector>,
        out: &mut Buffer,
    ) -> Result<()> {
        self.product(x, rows, w, bias, out)
    }
}
