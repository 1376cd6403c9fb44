//! Activations and parameters on the device.

use super::{
    Cuda, ahead::Ahead, attention::Partials, driver::Memory, kernels::Argument, mismatch, need,
};
use crate::Result;

/// Bytes that the L2 cache writes back together.
const LINE: usize = 128;
/// Bytes of planes that are worth dropping: what is written back meanwhile is more than it takes.
const DROPPED: usize = 1 << 20;

/// Element type of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    Bf16,
}

impl Element {
    pub(super) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// How kernels over it are called.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Activations on the device.
#[derive(Debug)]
pub struct Buffer {
    pub(super) memory: Memory,
    pub(super) len: usize,
    pub(super) element: Element,
    /// Where the values are, if they are not in `memory` yet.
    pub(super) pending: Option<Pending>,
    /// What attention left of the one row of the present step, if that is yet to be folded.
    pub(super) partials: Option<Partials>,
    /// What the product that reads the values fetches for the one after it.
    pub(super) ahead: Ahead,
    /// What rows are yet to be multiplied by.
    pub(super) scales: RowScales,
    /// Whether the values have been read for the last time.
    spent: bool,
    /// Room for planes, for what scales rows, or for partial results. Recorded steps keep the room that they were recorded with, so nothing is ever given back.
    rooms: Vec<Memory>,
}

/// Planes `[count, rows, width]` in f32, of which the sum (as a balanced tree) and the bias are values of a buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub planes: u64,
    pub bias: u64,
    pub count: usize,
    pub rows: usize,
    pub width: usize,
}

/// `struct Sums` of `kernels/common.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    planes: u64,
    bias: u64,
    stride: usize,
    count: i32,
    drops: i32,
}

// As the kernels assert it.
const _: () = assert!(size_of::<RowScales>() == 24);

// As the kernels assert it.
const _: () = assert!(size_of::<Sums>() == 32);

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernels' struct.
    unsafe impl super::Argument for super::Sums {}
    // SAFETY: as above.
    unsafe impl super::Argument for super::RowScales {}
}

impl Sums {
    pub(super) const NONE: Self = Self {
        planes: 0,
        bias: 0,
        stride: 0,
        count: 0,
        drops: 0,
    };

    /// Values at `address`.
    pub(super) fn of(address: u64) -> Self {
        Self {
            planes: address,
            count: 1,
            ..Self::NONE
        }
    }
}

/// `struct RowScales` of `kernels/common.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RowScales {
    pub squares: u64,
    pub rows: i32,
    pub width: i32,
    pub eps: f32,
}

impl RowScales {
    /// Values are as they should be.
    pub(super) const NONE: Self = Self {
        squares: 0,
        rows: 0,
        width: 0,
        eps: 0.0,
    };
}

impl Buffer {
    /// `len` zeros.
    pub(super) fn new(cuda: &Cuda, len: usize, element: Element) -> Result<Self> {
        let memory = Memory::new(&cuda.context, len * element.size(), "activations")?;
        cuda.stream.zero(&memory)?;
        Ok(Self {
            memory,
            len,
            element,
            pending: None,
            partials: None,
            ahead: Ahead::default(),
            scales: RowScales::NONE,
            spent: false,
            rooms: Vec::new(),
        })
    }

    /// Room for `bytes` of planes, of what scales rows, or of partial results.
    pub(super) fn room(&mut self, cuda: &Cuda, bytes: usize) -> Result<u64> {
        if let Some(room) = self.rooms.last().filter(|room| room.bytes() >= bytes) {
            return Ok(room.address());
        }
        let room = Memory::new(&cuda.context, bytes, "partial sums")?;
        let address = room.address();
        self.rooms.push(room);
        Ok(address)
    }

    /// Values are about to be written where they belong.
    pub(super) fn hold_values(&mut self) {
        self.pending = None;
        self.partials = None;
        self.ahead = Ahead::default();
        self.scales = RowScales::NONE;
        self.spent = false;
    }

    /// What the first `rows` rows of `width` values are yet to be multiplied by.
    pub(super) fn row_scales(&self, op: &str, rows: usize, width: usize) -> Result<RowScales> {
        let scales = self.scales;
        if scales == RowScales::NONE
            || scales.width as usize == width && scales.rows as usize >= rows
        {
            return Ok(scales);
        }
        Err(mismatch(
            op,
            format!(
                "{rows} rows of {width} values, of {} of {} that a norm made",
                scales.rows, scales.width
            ),
        ))
    }

    /// Where the values are, if nothing has to be added to them.
    pub(super) fn place(&self) -> Option<u64> {
        match self.pending {
            None => Some(self.memory.address()),
            Some(pending) => (pending.count == 1 && pending.bias == 0).then_some(pending.planes),
        }
    }

    /// The values of an f32 buffer, for a kernel that adds them up.
    pub(super) fn sums(&self) -> Sums {
        match self.pending {
            None => Sums::of(self.memory.address()),
            Some(pending) => Sums {
                planes: pending.planes,
                bias: pending.bias,
                stride: pending.rows * pending.width,
                count: pending.count as i32,
                drops: 0,
            },
        }
    }

    /// [`Buffer::sums`], for a kernel after which nobody reads planes, and which need not leave them. It reads runs of `run` values.
    /// Values in the buffer's own memory stay.
    pub(super) fn spend(&mut self, run: usize) -> Sums {
        let mut sums = self.sums();
        if let Some(pending) = self.pending.take() {
            let bytes = pending.count * sums.stride * 4;
            self.spent = true;
            let lines = [run, sums.stride].map(|of| of.is_multiple_of(LINE / 4));
            sums.drops = i32::from(lines == [true; 2] && bytes >= DROPPED);
        }
        sums
    }

    /// Refuses values that are gone.
    pub(super) fn check(&self, op: &str) -> Result<()> {
        match self.spent {
            true => Err(mismatch(
                op,
                "values that were read for the last time".into(),
            )),
            false => Ok(()),
        }
    }
}

/// Per-channel parameters on the device, in `f32`.
#[derive(Debug)]
pub struct Vector {
    pub(super) memory: Memory,
    pub(super) len: usize,
}

/// Refuses a buffer of another type, or with fewer values.
pub(super) fn want(
    op: &str,
    what: &str,
    buffer: &Buffer,
    element: Element,
    len: usize,
) -> Result<()> {
    if buffer.element != element {
        return Err(mismatch(
            op,
            format!("{what} is {:?}, not {element:?}", buffer.element),
        ));
    }
    need(op, what, buffer.len, len)
}
