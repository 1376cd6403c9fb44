//! What the backend needs of the CUDA driver, with owners for everything that has to be freed.

#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_uint, c_void},
    ptr::null_mut,
    sync::Arc,
};

use cudarc::driver::{
    DriverError,
    result::{self, stream::StreamKind},
    sys::{self, CUevent_flags, CUresult},
};

use crate::{Error, Result};

/// Status of a process that ends because its CUDA context is of no use any more.
const STICKY_STATUS: i32 = 70;

/// Turns a driver's error into the engine's. After an error that poisons the context nothing of it works again: the
/// process ends with the reason, and is started anew by whoever watches it.
pub(super) fn check<T>(what: &str, result: Result<T, DriverError>) -> Result<T> {
    result.map_err(|error| {
        let reason = format!("CUDA: {what}: {error}");
        if sticky(error.0) {
            tracing::error!(reason, "the GPU context is lost");
            eprintln!("error: {reason}");
            std::process::exit(STICKY_STATUS);
        }
        Error::GroupLost(reason)
    })
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
            what: "device cuda".into(),
            reason,
        };
        // SAFETY: only looks for the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(refuse(
                "this machine has no NVIDIA driver (libcuda.so)".into(),
            ));
        }
        result::init().map_err(|error| refuse(format!("the NVIDIA driver: {error}")))?;
        let count = check("counting devices", result::device::get_count())?;
        let device = c_int::try_from(ordinal)
            .ok()
            .filter(|&ordinal| ordinal < count)
            .map(result::device::get)
            .ok_or_else(|| refuse(format!("GPU {ordinal} is not there: {count} found")))?;
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

/// Device memory.
#[derive(Debug)]
pub(super) struct Memory {
    context: Arc<Context>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// `bytes` uninitialised bytes; at least one.
    ///
    /// # Errors
    /// [`Error::Capacity`] with what there is and what was needed.
    pub(super) fn new(context: &Arc<Context>, bytes: usize, what: &'static str) -> Result<Self> {
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

    pub(super) fn address(&self) -> sys::CUdeviceptr {
        self.address
    }

    pub(super) fn bytes(&self) -> usize {
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
pub(super) struct Pinned {
    context: Arc<Context>,
    first: *mut u32,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}
// SAFETY: writing takes `&mut self`.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<Context>, len: usize) -> Result<Self> {
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
    pub(super) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: allocated and initialised in `new`, and `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }

    /// One word that a kernel may have written.
    pub(super) fn read(&self, index: usize) -> u32 {
        assert!(index < self.len);
        // SAFETY: inside; written by a device that is done with it.
        unsafe { self.first.add(index).read_volatile() }
    }

    /// Where kernels find the words: unified addressing gives host and device one address.
    pub(super) fn address(&self) -> sys::CUdeviceptr {
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

/// A point in a stream.
#[derive(Debug)]
pub(super) struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: events may be used by any thread.
unsafe impl Send for Event {}
// SAFETY: likewise.
unsafe impl Sync for Event {}

impl Event {
    /// One to wait for, without keeping a core busy.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        let flags = CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32
            | CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        Self::with_flags(context, flags)
    }

    /// One that has a time.
    pub(super) fn timed(context: &Arc<Context>) -> Result<Self> {
        Self::with_flags(context, CUevent_flags::CU_EVENT_DEFAULT as u32)
    }

    fn with_flags(context: &Arc<Context>, flags: u32) -> Result<Self> {
        context.bind()?;
        let mut event = null_mut();
        // SAFETY: destroyed in `drop`.
        check("making an event", unsafe {
            sys::cuEventCreate(&mut event, flags).result()
        })?;
        Ok(Self {
            context: context.clone(),
            event,
        })
    }

    pub(super) fn wait(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the event is valid.
        check("a step", unsafe { result::event::synchronize(self.event) })
    }

    /// Milliseconds from `start`; both have happened.
    pub(super) fn since(&self, start: &Self) -> Result<f32> {
        self.context.bind()?;
        // SAFETY: both are valid.
        check("timing", unsafe {
            result::event::elapsed(start.event, self.event)
        })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `with_flags`.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

/// Work of a stream, recorded.
#[derive(Debug)]
pub(super) struct Graph {
    context: Arc<Context>,
    exec: sys::CUgraphExec,
}

// SAFETY: used by one thread at a time (`&mut` or ownership of `Rows`).
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `Stream::record`.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

/// Size of a launch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub grid: [usize; 3],
    pub block: [usize; 2],
    /// Dynamic shared memory, in bytes.
    pub shared: usize,
}

/// A kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function(sys::CUfunction);

// SAFETY: functions belong to a module that is never unloaded.
unsafe impl Send for Function {}
// SAFETY: likewise.
unsafe impl Sync for Function {}

impl Function {
    /// Kernels of a fat binary, for as long as the process lives.
    pub(super) fn module(context: &Context, image: &'static [u8]) -> Result<Module> {
        context.bind()?;
        // SAFETY: the image is a fat binary that nvcc made.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        Ok(Module(check("loading kernels", module)?))
    }

    /// Allows `bytes` of dynamic shared memory.
    pub(super) fn allow_shared(self, bytes: usize) -> Result<()> {
        let attribute =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
        // SAFETY: the function is valid.
        check("allowing shared memory", unsafe {
            result::function::set_function_attribute(self.0, attribute, bytes)
        })
    }
}

/// A loaded fat binary.
#[derive(Debug)]
pub(super) struct Module(sys::CUmodule);

// SAFETY: only read from.
unsafe impl Send for Module {}
// SAFETY: likewise.
unsafe impl Sync for Module {}

impl Module {
    /// The kernel `name`, if it is here.
    pub(super) fn function(&self, name: &str) -> Option<Function> {
        let name = std::ffi::CString::new(name).ok()?;
        // SAFETY: the module is valid.
        unsafe { result::module::get_function(self.0, name) }
            .ok()
            .map(Function)
    }
}

/// An order of work.
#[derive(Debug)]
pub(super) struct Stream {
    context: Arc<Context>,
    stream: sys::CUstream,
}

// SAFETY: streams may be used by any thread.
unsafe impl Send for Stream {}
// SAFETY: likewise; the driver locks them.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        context.bind()?;
        let stream = check(
            "making a stream",
            result::stream::create(StreamKind::NonBlocking),
        )?;
        Ok(Self {
            context: context.clone(),
            stream,
        })
    }

    pub(super) fn wait(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the stream is valid.
        check("running kernels", unsafe {
            result::stream::synchronize(self.stream)
        })
    }

    pub(super) fn record_event(&self, event: &Event) -> Result<()> {
        self.context.bind()?;
        // SAFETY: both are valid.
        check("recording an event", unsafe {
            result::event::record(event.event, self.stream)
        })
    }

    pub(super) fn zero(&self, memory: &Memory) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the memory has that many bytes.
        check("clearing memory", unsafe {
            result::memset_d8_async(memory.address, 0, memory.bytes, self.stream)
        })
    }

    /// Copies host values to `to`, `offset` bytes on. The values can be dropped at once: the driver copies what is
    /// not pinned before it returns, and pinned values are waited for by their owner.
    pub(super) fn upload<T: Copy>(&self, values: &[T], to: &Memory, offset: usize) -> Result<()> {
        assert!(
            offset + size_of_val(values) <= to.bytes,
            "past the end of device memory"
        );
        self.context.bind()?;
        // SAFETY: checked above.
        check("copying to the device", unsafe {
            result::memcpy_htod_async(to.address + offset as u64, values, self.stream)
        })
    }

    /// Copies from device memory, `offset` bytes on, and waits for it.
    pub(super) fn download<T: Copy>(
        &self,
        from: &Memory,
        offset: usize,
        values: &mut [T],
    ) -> Result<()> {
        assert!(
            offset + size_of_val(values) <= from.bytes,
            "past the end of device memory"
        );
        self.context.bind()?;
        // SAFETY: checked above; waits before `values` can be used.
        check("copying from the device", unsafe {
            result::memcpy_dtoh_async(values, from.address + offset as u64, self.stream)
        })?;
        self.wait()
    }

    pub(super) fn copy(
        &self,
        from: &Memory,
        from_offset: usize,
        to: &Memory,
        to_offset: usize,
        bytes: usize,
    ) -> Result<()> {
        assert!(
            from_offset + bytes <= from.bytes && to_offset + bytes <= to.bytes,
            "past the end of device memory"
        );
        self.context.bind()?;
        // SAFETY: checked above.
        check("copying on the device", unsafe {
            result::memcpy_dtod_async(
                to.address + to_offset as u64,
                from.address + from_offset as u64,
                bytes,
                self.stream,
            )
        })
    }

    /// Launches a kernel.
    ///
    /// # Safety
    /// `arguments` point at values of the kernel's parameter types, and what those point at is valid on the device and
    /// as large as the kernel takes it to be.
    pub(super) unsafe fn launch(
        &self,
        name: &str,
        function: Function,
        size: Grid,
        dependent: bool,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        self.context.bind()?;
        let part = |value: usize| c_uint::try_from(value).unwrap_or(c_uint::MAX);
        // SAFETY: all-zero bytes are a valid attribute, of which the used part is set below.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id =
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: part(size.grid[0]),
            gridDimY: part(size.grid[1]),
            gridDimZ: part(size.grid[2]),
            blockDimX: part(size.block[0]),
            blockDimY: part(size.block[1]),
            blockDimZ: 1,
            sharedMemBytes: part(size.shared),
            hStream: self.stream,
            attrs: &mut attribute,
            numAttrs: u32::from(dependent),
        };
        // SAFETY: the caller's promise.
        let launched = unsafe {
            sys::cuLaunchKernelEx(&config, function.0, arguments.as_mut_ptr(), null_mut()).result()
        };
        check(name, launched)
    }

    /// Records what `work` gives to the stream, without running it.
    pub(super) fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.context.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is valid, and recording ends below whatever `work` does.
        check("recording", unsafe {
            result::stream::begin_capture(self.stream, mode)
        })?;
        let worked = work();
        // SAFETY: recording has begun.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        worked?;
        let graph = check("recording", graph)?;
        let mut exec = null_mut();
        // SAFETY: the graph is valid; it is of no use once instantiated.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0).result();
            let _ = result::graph::destroy(graph);
            made
        };
        check("preparing a recording", made)?;
        Ok(Graph {
            context: self.context.clone(),
            exec,
        })
    }

    pub(super) fn play(&self, graph: &Graph) -> Result<()> {
        self.context.bind()?;
        // SAFETY: both are valid; what the graph's kernels use outlives it (see `Rows`).
        check("starting a step", unsafe {
            result::graph::launch(graph.exec, self.stream)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `new`.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}
