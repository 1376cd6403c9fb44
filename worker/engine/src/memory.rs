//! Memory for sizes that come from configurations: refused where there is none, never an abort.

#![allow(unsafe_code, reason = "zeroed pages are asked of the allocator itself")]

use std::alloc::{Layout, alloc_zeroed};

/// A number whose bytes may all be zero.
pub(crate) trait Number: Copy {}
impl Number for f32 {}
impl Number for u32 {}

/// `len` zeros whose pages are committed as they are written; `None` if the system has no room.
pub(crate) fn zeros<T: Number>(len: usize) -> Option<Vec<T>> {
    if len == 0 {
        return Some(Vec::new());
    }
    let layout = Layout::array::<T>(len).ok()?;
    // SAFETY: the layout is not empty.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        return None;
    }
    // SAFETY: the global allocator gave the memory for an array of `len` values, and zero bytes are
    // values of a `Number`.
    Some(unsafe { Vec::from_raw_parts(memory.cast(), len, len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_zeros_or_nothing() {
        assert_eq!(zeros::<f32>(3), Some(vec![0.0; 3]));
        assert_eq!(zeros::<u32>(0), Some(vec![]));
        assert_eq!(zeros::<u32>(usize::MAX), None);
        assert_eq!(zeros::<f32>(isize::MAX as usize / 4), None);
    }
}
