//! Streams, the kernels they run, and recordings of what they ran.

#![allow(unsafe_code, reason = "the driver is called through its C interface")]

use std::{
    ffi::{c_int, c_uint, c_void},
    ptr::null_mut,
    sync::Arc,
};

use cudarc::driver::{
    result::{self, stream::StreamKind},
    sys::{self, CUevent_flags},
};

use super::{Context, Memory, check};
use crate::Result;

/// A point in a stream.
#[derive(Debug)]
pub(in crate::ops::cuda) struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: events may be used by any thread.
unsafe impl Send for Event {}
// SAFETY: likewise.
unsafe impl Sync for Event {}

impl Event {
    /// One to wait for, without keeping a core busy.
    pub(in crate::ops::cuda) fn new(context: &Arc<Context>) -> Result<Self> {
        let flags = CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32
            | CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        Self::with_flags(context, flags)
    }

    /// One that has a time.
    pub(in crate::ops::cuda) fn timed(context: &Arc<Context>) -> Result<Self> {
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

    pub(in crate::ops::cuda) fn wait(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the event is valid.
        check("a step", unsafe { result::event::synchronize(self.event) })
    }

    /// Whether it has happened.
    pub(in crate::ops::cuda) fn happened(&self) -> Result<bool> {
        self.context.bind()?;
        // SAFETY: the event is valid.
        match unsafe { result::event::query(self.event) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => check("a step", other).map(|()| true),
        }
    }

    /// Milliseconds from `start`; both have happened.
    pub(in crate::ops::cuda) fn since(&self, start: &Self) -> Result<f32> {
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
pub(in crate::ops::cuda) struct Graph {
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
pub(in crate::ops::cuda) struct Grid {
    pub grid: [usize; 3],
    pub block: [usize; 2],
    /// Dynamic shared memory, in bytes.
    pub shared: usize,
}

/// A kernel.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops::cuda) struct Function(sys::CUfunction);

// SAFETY: functions belong to a module that is never unloaded.
unsafe impl Send for Function {}
// SAFETY: likewise.
unsafe impl Sync for Function {}

impl Function {
    /// Kernels of a fat binary, for as long as the process lives. All are loaded now: the driver may not do so while a kernel
    /// waits for another GPU.
    pub(in crate::ops::cuda) fn module(context: &Context, image: &'static [u8]) -> Result<Module> {
        context.bind()?;
        // SAFETY: the image is a fat binary that nvcc made.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = check("loading kernels", module)?;
        let mut count = 0;
        // SAFETY: the module is valid.
        check("counting kernels", unsafe {
            sys::cuModuleGetFunctionCount(&mut count, module).result()
        })?;
        let mut functions = vec![null_mut(); count as usize];
        // SAFETY: there is room for as many.
        check("listing kernels", unsafe {
            sys::cuModuleEnumerateFunctions(functions.as_mut_ptr(), count, module).result()
        })?;
        for function in functions {
            // SAFETY: a function of the module.
            check("loading a kernel", unsafe {
                sys::cuFuncLoad(function).result()
            })?;
        }
        Ok(Module(module))
    }

    /// Registers of a thread.
    pub(in crate::ops::cuda) fn registers(self) -> Result<usize> {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NUM_REGS;
        let mut registers = 0;
        // SAFETY: the function is valid.
        check("counting registers", unsafe {
            sys::cuFuncGetAttribute(&mut registers, attribute, self.0).result()
        })?;
        Ok(usize::try_from(registers).unwrap_or(0))
    }

    /// Allows `bytes` of dynamic shared memory.
    pub(in crate::ops::cuda) fn allow_shared(self, bytes: usize) -> Result<()> {
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
pub(in crate::ops::cuda) struct Module(sys::CUmodule);

// SAFETY: only read from.
unsafe impl Send for Module {}
// SAFETY: likewise.
unsafe impl Sync for Module {}

impl Module {
    /// The kernel `name`, if it is here.
    pub(in crate::ops::cuda) fn function(&self, name: &str) -> Option<Function> {
        let name = std::ffi::CString::new(name).ok()?;
        // SAFETY: the module is valid.
        unsafe { result::module::get_function(self.0, name) }
            .ok()
            .map(Function)
    }
}

/// An order of work.
#[derive(Debug)]
pub(in crate::ops::cuda) struct Stream {
    context: Arc<Context>,
    stream: sys::CUstream,
}

// SAFETY: streams may be used by any thread.
unsafe impl Send for Stream {}
// SAFETY: likewise; the driver locks them.
unsafe impl Sync for Stream {}

impl Stream {
    pub(in crate::ops::cuda) fn new(context: &Arc<Context>) -> Result<Self> {
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

    /// For libraries that launch into it.
    pub(in crate::ops::cuda) fn handle(&self) -> sys::CUstream {
        self.stream
    }

    pub(in crate::ops::cuda) fn wait(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the stream is valid.
        check("running kernels", unsafe {
            result::stream::synchronize(self.stream)
        })
    }

    pub(in crate::ops::cuda) fn record_event(&self, event: &Event) -> Result<()> {
        self.context.bind()?;
        // SAFETY: both are valid.
        check("recording an event", unsafe {
            result::event::record(event.event, self.stream)
        })
    }

    /// What follows waits for `event`, which has been recorded.
    pub(in crate::ops::cuda) fn wait_for(&self, event: &Event) -> Result<()> {
        self.context.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are valid.
        check("waiting for an event", unsafe {
            result::stream::wait_event(self.stream, event.event, flags)
        })
    }

    pub(in crate::ops::cuda) fn zero(&self, memory: &Memory) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the memory has that many bytes.
        check("clearing memory", unsafe {
            result::memset_d8_async(memory.address, 0, memory.bytes, self.stream)
        })
    }

    /// Fills memory of whole words with `word`.
    pub(in crate::ops::cuda) fn fill(&self, memory: &Memory, word: u32) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the memory has that many words.
        check("filling memory", unsafe {
            sys::cuMemsetD32Async(memory.address, word, memory.bytes / 4, self.stream).result()
        })
    }

    /// Copies host values to `to`, `offset` bytes on. The values can be dropped at once: the driver copies what is
    /// not pinned before it returns, and pinned values are waited for by their owner.
    pub(in crate::ops::cuda) fn upload<T: Copy>(
        &self,
        values: &[T],
        to: &Memory,
        offset: usize,
    ) -> Result<()> {
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
    pub(in crate::ops::cuda) fn download<T: Copy>(
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

    pub(in crate::ops::cuda) fn copy(
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
    pub(in crate::ops::cuda) unsafe fn launch(
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
    pub(in crate::ops::cuda) fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.context.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is valid, and recording ends below whatever `work` does.
        check("recording", unsafe {
            result::stream::begin_capture(self.stream, mode)
        })?;
        let worked = work();
        // SAFETY: recording has begun.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        let mut exec = null_mut();
        // SAFETY: the graph, if there is one, is valid. It is of no use once instantiated, or where that is not to be, and a
        // communicator that it uses would not end before it does.
        let made = graph.map(|graph| unsafe {
            let made = worked
                .is_ok()
                .then(|| sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0).result());
            let _ = result::graph::destroy(graph);
            made
        });
        worked?;
        if let Some(made) = check("recording", made)? {
            check("preparing a recording", made)?;
        }
        Ok(Graph {
            context: self.context.clone(),
            exec,
        })
    }

    pub(in crate::ops::cuda) fn play(&self, graph: &Graph) -> Result<()> {
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
