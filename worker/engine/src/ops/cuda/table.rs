//! Embedding tables.

use super::{
    Cuda, Element,
    driver::Memory,
    upload::{HostRows, Staging},
};
use crate::{Result, ops::MatrixPart};

/// An embedding table `[entries, width]` on the device.
#[derive(Debug)]
pub struct Table {
    pub(super) memory: Memory,
    pub(super) element: Element,
    pub(super) width: usize,
}

impl Table {
    pub(super) fn new(cuda: &Cuda, parts: &[MatrixPart]) -> Result<Self> {
        let rows = HostRows::new(parts)?;
        let element = cuda.element();
        let bytes = rows.count() * rows.cols() * element.size();
        let memory = Memory::new(&cuda.context, bytes, "an embedding table")?;
        cuda.upload_rows(&rows, element, 1, |staging| {
            copy_rows(cuda, &staging, &memory)
        })?;
        Ok(Self {
            memory,
            element,
            width: rows.cols(),
        })
    }
}

/// Copies a slice of rows to their place in `memory`, as they are.
pub(super) fn copy_rows(cuda: &Cuda, staging: &Staging<'_>, memory: &Memory) -> Result<()> {
    let offset = staging.first * staging.row_bytes;
    cuda.stream.copy(
        staging.memory,
        0,
        memory,
        offset,
        staging.rows * staging.row_bytes,
    )
}
