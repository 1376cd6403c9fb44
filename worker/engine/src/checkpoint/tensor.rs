//! A weight tensor as its file holds it.

use std::{ops::BitAnd, path::Path, sync::Arc};

use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian and used in place");

/// Bytes that one task checks for non-finite values.
const SCAN_CHUNK: usize = 1 << 20;

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

    /// The element in [`DType::size`] little-endian bytes (exact for every type).
    #[cfg(feature = "cuda")]
    pub(crate) fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
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
    Owned(Arc<Vec<u32>>, usize),
}

impl TensorBytes {
    /// Heap memory that holds a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let words = bytes.chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_le_bytes(word)
        });
        Self::Owned(Arc::new(words.collect()), bytes.len())
    }
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
        debug_assert_eq!(
            shape.iter().product::<usize>() * dtype.size(),
            match &bytes {
                TensorBytes::Mapped { len, .. } | TensorBytes::Owned(_, len) => *len,
            },
            "{name}"
        );
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
        let words = values.iter().map(|v| v.to_bits()).collect();
        let bytes = TensorBytes::Owned(Arc::new(words), values.len() * 4);
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

    /// The elements in place, if they are of type `T` and aligned.
    pub(crate) fn elements<T: Element>(&self) -> Option<&[T]> {
        if self.dtype != T::DTYPE {
            return None;
        }
        cast(self.bytes())
    }

    /// Index of the first infinite or NaN element, in row-major order.
    pub fn first_non_finite(&self) -> Option<usize> {
        let bytes = self.bytes();
        let in_chunk = |chunk: &[u8]| match self.dtype {
            DType::F32 => first_full_exponent(chunk, 0x7f80_0000, u32::from_le_bytes),
            DType::F16 => first_full_exponent(chunk, 0x7c00, u16::from_le_bytes),
            DType::Bf16 => first_full_exponent(chunk, 0x7f80, u16::from_le_bytes),
        };
        bytes
            .par_chunks(SCAN_CHUNK)
            .enumerate()
            .find_map_first(|(chunk, part)| {
                Some(chunk * SCAN_CHUNK / self.dtype.size() + in_chunk(part)?)
            })
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

/// The first element of `bytes` whose exponent, under `mask`, is all ones.
fn first_full_exponent<const N: usize, W>(
    bytes: &[u8],
    mask: W,
    word: impl Fn([u8; N]) -> W,
) -> Option<usize>
where
    W: Copy + PartialEq + BitAnd<Output = W>,
{
    const BLOCK: usize = 1024;
    let (words, _) = bytes.as_chunks::<N>();
    let full = |bytes: &[u8; N]| word(*bytes) & mask == mask;
    // Without an early exit inside a block the comparison is vectorised.
    let suspect = words
        .chunks(BLOCK)
        .position(|block| block.iter().fold(false, |any, bytes| any | full(bytes)))?;
    let first = suspect * BLOCK;
    Some(first + words[first..].iter().position(full)?)
}

/// Stored element types, of which every bit pattern is a value.
pub(crate) trait Element: Copy {
    /// The type's name in a [`HostTensor`].
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;
}

/// `bytes` as elements, if they start at a multiple of the element's alignment.
#[expect(unsafe_code, reason = "mapped bytes are used as the numbers they are")]
fn cast<T: Element>(bytes: &[u8]) -> Option<&[T]> {
    // SAFETY: every bit pattern is a valid `T`, and `align_to` keeps to alignment and length.
    let (head, elements, tail) = unsafe { bytes.align_to::<T>() };
    (head.is_empty() && tail.is_empty()).then_some(elements)
}

#[expect(unsafe_code, reason = "words are used as the bytes they are")]
fn bytes_of(words: &[u32]) -> &[u8] {
    // SAFETY: every byte of a `u32` is initialised, `u8` has no alignment, and the lengths agree.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 4) }
}

#[cfg(test)]
mod tests;
