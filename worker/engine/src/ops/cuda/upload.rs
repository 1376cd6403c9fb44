//! Weights from mapped files to the device: copied and converted by all cores into pinned memory, a slice of rows at a
//! time, while the slice before it is on its way.

use rayon::prelude::*;

use half::bf16;

use super::{
    Cuda, Element,
    driver::{Event, Memory, Pinned},
    lock,
};
use crate::{
    Error, Result,
    checkpoint::{DType, HostTensor},
    ops::MatrixPart,
};

/// Bytes of a slice.
const SLICE: usize = 32 << 20;

/// Rows of stacked stored rectangles.
pub(super) struct HostRows<'a> {
    parts: &'a [MatrixPart],
    cols: usize,
    /// Rows before each part, and all rows.
    offsets: Vec<usize>,
}

/// A slice of rows on the device.
pub(super) struct Staging<'a> {
    pub memory: &'a Memory,
    /// Number of the first row.
    pub first: usize,
    pub rows: usize,
    pub row_bytes: usize,
}

/// Two slices under way.
#[derive(Debug, Default)]
pub(super) struct Uploader {
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Lane {
    pinned: Pinned,
    device: Memory,
    /// Happens when both are free again.
    free: Event,
}

impl<'a> HostRows<'a> {
    /// # Errors
    /// [`Error::Checkpoint`] for a rectangle outside its tensor.
    pub(super) fn new(parts: &'a [MatrixPart]) -> Result<Self> {
        let cols = parts.first().map_or(0, |part| part.cols.len());
        let mut offsets = vec![0];
        let mut count = 0;
        for part in parts {
            let tensor = &part.tensor;
            let stored = tensor.shape().first().copied().unwrap_or(0);
            if part.rows.end > stored
                || part.rows.start > part.rows.end
                || part.cols.end > width(tensor)
                || part.cols.len() != cols
            {
                return Err(Error::checkpoint(
                    tensor.file(),
                    tensor.name(),
                    format!(
                        "rows {:?} and columns {:?} ({cols} wanted) of {:?}",
                        part.rows,
                        part.cols,
                        tensor.shape()
                    ),
                ));
            }
            count += part.rows.len();
            offsets.push(count);
        }
        Ok(Self {
            parts,
            cols,
            offsets,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.offsets[self.offsets.len() - 1]
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Writes row `index` as `element`s.
    fn write(&self, index: usize, element: Element, out: &mut [u8]) {
        let number = self.offsets.partition_point(|&offset| offset <= index) - 1;
        let part = &self.parts[number];
        let (tensor, row) = (&part.tensor, part.rows.start + index - self.offsets[number]);
        let size = tensor.dtype().size();
        let from = (row * width(tensor) + part.cols.start) * size;
        let bytes = &tensor.bytes()[from..from + self.cols * size];
        match (tensor.dtype(), element) {
            (DType::Bf16, Element::Bf16) | (DType::F32, Element::F32) => out.copy_from_slice(bytes),
            (dtype, element) => {
                for (from, to) in bytes
                    .chunks_exact(size)
                    .zip(out.chunks_exact_mut(element.size()))
                {
                    let value = dtype.read(from);
                    match element {
                        Element::F32 => to.copy_from_slice(&value.to_le_bytes()),
                        Element::Bf16 => to.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                    }
                }
            }
        }
    }
}

/// Elements of a stored row.
fn width(tensor: &HostTensor) -> usize {
    let rows = tensor.shape().first().copied().unwrap_or(0);
    tensor.len().checked_div(rows).unwrap_or(0)
}

impl Cuda {
    /// Brings `rows` to the device as `element`s, in slices of a multiple of `tile` rows, each handed to `take` (which
    /// launches what reads it).
    pub(super) fn upload_rows(
        &self,
        rows: &HostRows<'_>,
        element: Element,
        tile: usize,
        take: impl Fn(Staging<'_>) -> Result<()>,
    ) -> Result<()> {
        let row_bytes = rows.cols() * element.size();
        if row_bytes == 0 || rows.count() == 0 {
            return Ok(());
        }
        let slice = (SLICE / row_bytes / tile).max(1) * tile;
        let needed = slice.min(rows.count()) * row_bytes;
        let mut uploader = lock(&self.uploader);
        uploader.reserve(self, needed)?;
        for (number, first) in (0..rows.count()).step_by(slice).enumerate() {
            let lane = &mut uploader.lanes[number % 2];
            let count = slice.min(rows.count() - first);
            lane.free.wait()?;
            let words = &mut lane.pinned.words_mut()[..(count * row_bytes).div_ceil(4)];
            let bytes = bytes_of(words);
            bytes[..count * row_bytes]
                .par_chunks_mut(row_bytes)
                .enumerate()
                .for_each(|(row, out)| rows.write(first + row, element, out));
            self.stream
                .upload(&bytes[..count * row_bytes], &lane.device, 0)?;
            take(Staging {
                memory: &lane.device,
                first,
                rows: count,
                row_bytes,
            })?;
            self.stream.record_event(&lane.free)?;
        }
        Ok(())
    }

    /// Gives back the memory that loading took.
    ///
    /// # Errors
    /// [`Error::GroupLost`] with what the driver says.
    pub fn finish_loading(&self) -> Result<()> {
        self.stream.wait()?;
        lock(&self.uploader).lanes.clear();
        Ok(())
    }
}

impl Uploader {
    fn reserve(&mut self, cuda: &Cuda, bytes: usize) -> Result<()> {
        if self.lanes.len() == 2 && self.lanes.iter().all(|lane| lane.device.bytes() >= bytes) {
            return Ok(());
        }
        cuda.stream.wait()?;
        self.lanes.clear();
        let bytes = bytes.max(SLICE);
        for _ in 0..2 {
            self.lanes.push(Lane {
                pinned: Pinned::new(&cuda.context, bytes.div_ceil(4))?,
                device: Memory::new(&cuda.context, bytes, "loading weights")?,
                free: Event::new(&cuda.context)?,
            });
        }
        Ok(())
    }
}

#[allow(unsafe_code, reason = "words are looked at as bytes")]
fn bytes_of(words: &mut [u32]) -> &mut [u8] {
    // SAFETY: bytes have no alignment and every pattern is a value of both.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 4) }
}
