//! Borrowed row-major rectangles with a row stride.

#![allow(
    unsafe_code,
    reason = "threads write to disjoint parts of one rectangle"
)]

use std::{marker::PhantomData, ops::Range};

/// `count` rows of `cols` elements, `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    values: &'a [T],
    stride: usize,
    count: usize,
    cols: usize,
}

impl<'a, T> Rows<'a, T> {
    /// # Panics
    /// If `values` is too short.
    pub(super) fn new(values: &'a [T], stride: usize, count: usize, cols: usize) -> Self {
        assert!(
            extent(stride, count, cols) <= values.len(),
            "rows past the end of a buffer"
        );
        Self {
            values,
            stride,
            count,
            cols,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// One row.
    pub(super) fn row(&self, index: usize) -> &'a [T] {
        &self.values[index * self.stride..][..self.cols]
    }

    /// Some of the rows.
    pub(super) fn slice(&self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.count);
        let values = if rows.is_empty() {
            &[]
        } else {
            &self.values[rows.start * self.stride..]
        };
        Self {
            values,
            count: rows.len(),
            ..*self
        }
    }

    /// The first element of the first row.
    pub(super) fn as_ptr(&self) -> *const T {
        self.values.as_ptr()
    }
}

/// The same, to write to; several threads may hold views of different cells.
pub(super) struct RowsMut<'a> {
    first: *mut f32,
    stride: usize,
    count: usize,
    cols: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view is a `&mut [f32]` less the cells that other views have (see `share`).
unsafe impl Send for RowsMut<'_> {}
// SAFETY: writing needs `&mut self`; `share` is unsafe.
unsafe impl Sync for RowsMut<'_> {}

impl<'a> RowsMut<'a> {
    /// # Panics
    /// If `values` is too short.
    pub(super) fn new(values: &'a mut [f32], stride: usize, count: usize, cols: usize) -> Self {
        assert!(
            extent(stride, count, cols) <= values.len(),
            "rows past the end of a buffer"
        );
        let first = values.as_mut_ptr();
        Self {
            first,
            stride,
            count,
            cols,
            owner: PhantomData,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// A view of a rectangle of the cells.
    ///
    /// # Safety
    /// While it lives, no other view writes to its cells.
    pub(super) unsafe fn share(&self, rows: Range<usize>, cols: Range<usize>) -> RowsMut<'a> {
        assert!(rows.start <= rows.end && rows.end <= self.count);
        assert!(cols.start <= cols.end && cols.end <= self.cols);
        RowsMut {
            first: self
                .first
                .wrapping_add(rows.start * self.stride + cols.start),
            stride: self.stride,
            count: rows.len(),
            cols: cols.len(),
            owner: PhantomData,
        }
    }

    /// One row.
    pub(super) fn row(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.count);
        // SAFETY: the row is inside (`new`, `share`), and nobody else writes to its cells.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(index * self.stride), self.cols) }
    }
}

fn extent(stride: usize, count: usize, cols: usize) -> usize {
    if count == 0 || cols == 0 {
        0
    } else {
        (count - 1) * stride + cols
    }
}
