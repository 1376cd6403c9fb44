//! A weight tensor as its file holds it.

use std::{path::Path, sync::Arc};

use half::{bf16, f16};
use memmap2::Mmap;

/// Element types that checkpoints use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Where the bytes live: in a mapped file, or on the heap.
#[derive(Debug, Clone)]
pub enum TensorBytes {
    /// `offset..offset + len` of a mapped file.
    Mapped {
        /// The file.
        map: Arc<Mmap>,
        /// First byte.
        offset: usize,
        /// Number of bytes.
        len: usize,
    },
    /// Aligned heap memory, for tensors that had to be rearranged or were generated.
    Owned(Arc<[u32]>, usize),
}

/// A dense row-major tensor, little-endian, cheap to clone.
#[derive(Debug, Clone)]
pub struct HostTensor {
    name: Arc<str>,
    file: Arc<Path>,
    dtype: DType,
    shape: Vec<usize>,
    bytes: TensorBytes,
}

impl HostTensor {
    /// A tensor over bytes of `file`; `bytes` holds exactly the elements of `shape`.
    pub fn new(
        name: &str,
        file: &Arc<Path>,
        dtype: DType,
        shape: &[usize],
        bytes: TensorBytes,
    ) -> Self {
        Self {
            name: name.into(),
            file: file.clone(),
            dtype,
            shape: shape.to_vec(),
            bytes,
        }
    }

    /// A heap tensor of `f32` values, for parameters that are computed rather than read.
    pub fn from_f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let words: Arc<[u32]> = values.iter().map(|v| v.to_bits()).collect();
        let bytes = TensorBytes::Owned(words, values.len() * 4);
        Self::new(name, &Path::new("").into(), DType::F32, shape, bytes)
    }

    /// The tensor's name in its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that the tensor came from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The raw little-endian elements, row-major. Not necessarily aligned to the element size.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            TensorBytes::Mapped { map, offset, len } => &map[*offset..*offset + *len],
            TensorBytes::Owned(words, len) => &bytes_of(words)[..*len],
        }
    }

    /// All elements as `f32` (exact for every [`DType`]).
    pub fn to_f32(&self) -> Vec<f32> {
        let bytes = self.bytes();
        match self.dtype {
            DType::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            DType::F16 => bytes
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            DType::Bf16 => bytes
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
        }
    }
}

#[allow(unsafe_code)]
fn bytes_of(words: &[u32]) -> &[u8] {
    // SAFETY: every byte of a `u32` is initialised, `u8` has no alignment, and the lengths agree.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 4) }
}
