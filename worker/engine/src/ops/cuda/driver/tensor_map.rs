//! Descriptions of arrays that the copy engine reads boxes of.

#![allow(unsafe_code, reason = "the driver is called through its C interface")]

use std::ffi::c_void;

use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};

use super::check;
use crate::Result;

/// A `bf16` array `[rows, cols]` of which boxes are copied to shared memory, swizzled by 128 bytes. What a box has outside of
/// the array is zero.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(in crate::ops::cuda) struct TensorMap(CUtensorMap);

impl TensorMap {
    /// The array at `address`, whose rows are multiples of 16 bytes, in boxes of `box_rows` (at most 256) rows of 64 columns.
    ///
    /// # Errors
    /// [`crate::Error::GroupLost`] with what the driver says.
    pub(in crate::ops::cuda) fn new(
        address: u64,
        rows: usize,
        cols: usize,
        box_rows: usize,
    ) -> Result<Self> {
        let mut map = CUtensorMap { opaque: [0; 16] };
        let (dims, strides) = ([cols as u64, rows as u64], [2 * cols as u64]);
        let (boxes, steps) = ([64, box_rows as u32], [1, 1]);
        // SAFETY: the arrays have as many entries as the rank wants; the address is only written down.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                address as *mut c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
        };
        check("describing activations", encoded)?;
        Ok(Self(map))
    }
}
