//! Sixteen `f32` lanes: the width every reduction of this backend is defined over.
//!
//! One lane type per instruction set. The operations are IEEE exact (multiply-add rounds once), so
//! generic kernels give the same bits whichever type they are instantiated with.

#![allow(unsafe_code, reason = "lanes are read and written through pointers")]

use half::bf16;

/// Lanes of a reduction.
pub(super) const LANES: usize = 16;

/// Arithmetic that a scalar and a group of lanes share.
pub(super) trait Real: Copy {
    /// `value` everywhere.
    fn splat(value: f32) -> Self;
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self · other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self · factor + term`, rounded once.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `self` where `self > other`, else `other` (also where either is not a number).
    fn max(self, other: Self) -> Self;
    /// `self` where `self < other`, else `other` (also where either is not a number).
    fn min(self, other: Self) -> Self;
    /// `yes` where `self > other`, else `no`.
    fn where_greater(self, other: Self, yes: Self, no: Self) -> Self;
    /// Without the sign.
    fn abs(self) -> Self;
    /// `self` with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// The nearest integer, ties to even.
    fn round(self) -> Self;
    /// `2^self` for integers in `-126..=127`.
    fn exp2_integer(self) -> Self;
}

/// A group of [`LANES`] lanes.
///
/// The vector types may only be used inside [`super::dispatch::Isa::run`], which has checked that
/// the processor has their instructions.
pub(super) trait Lanes: Real {
    /// Whether a group is one register of thirty-two, so that large register tiles pay.
    const WIDE: bool;

    /// # Safety
    /// `from` is valid for reading sixteen values.
    unsafe fn load(from: *const f32) -> Self;

    /// # Safety
    /// `from` is valid for reading sixteen values.
    unsafe fn load_bf16(from: *const bf16) -> Self;

    /// `count <= 16` values, then zeros.
    ///
    /// # Safety
    /// `from` is valid for reading `count` values.
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        let mut lanes = [0.0; LANES];
        // SAFETY: as the caller promises.
        lanes[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(from, count) });
        // SAFETY: `lanes` has sixteen values.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// `count <= 16` values, then zeros.
    ///
    /// # Safety
    /// `from` is valid for reading `count` values.
    #[inline(always)]
    unsafe fn load_bf16_part(from: *const bf16, count: usize) -> Self {
        let mut lanes = [bf16::ZERO; LANES];
        // SAFETY: as the caller promises.
        lanes[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(from, count) });
        // SAFETY: `lanes` has sixteen values.
        unsafe { Self::load_bf16(lanes.as_ptr()) }
    }

    /// # Safety
    /// `to` is valid for writing sixteen values.
    unsafe fn store(self, to: *mut f32);

    /// Stores the first `count <= 16` lanes.
    ///
    /// # Safety
    /// `to` is valid for writing `count` values.
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        let mut lanes = [0.0; LANES];
        // SAFETY: `lanes` has sixteen values, and `to` room for `count`.
        unsafe {
            self.store(lanes.as_mut_ptr());
            std::slice::from_raw_parts_mut(to, count).copy_from_slice(&lanes[..count]);
        }
    }

    /// Asks for the cache line at `address`, which need not be valid.
    #[inline(always)]
    fn prefetch(_address: *const u8) {}

    /// The sum of the lanes by one fixed tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
    fn sum(self) -> f32;

    /// The largest lane.
    #[inline(always)]
    fn largest(self) -> f32 {
        let mut lanes = [0.0; LANES];
        // SAFETY: `lanes` has sixteen values.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut best = lanes[0];
        for lane in lanes {
            best = if lane > best { lane } else { best };
        }
        best
    }

    /// `values[at..at + 16]`, zeros past the end.
    #[inline(always)]
    fn read(values: &[f32], at: usize) -> Self {
        let values = &values[at..];
        // SAFETY: there are as many values.
        unsafe {
            if values.len() >= LANES {
                Self::load(values.as_ptr())
            } else {
                Self::load_part(values.as_ptr(), values.len())
            }
        }
    }

    /// `values[at..at + 16]`, `missing` past the end.
    #[inline(always)]
    fn read_or(values: &[f32], at: usize, missing: f32) -> Self {
        if at + LANES <= values.len() {
            return Self::read(values, at);
        }
        let mut lanes = [missing; LANES];
        let tail = &values[at..];
        lanes[..tail.len()].copy_from_slice(tail);
        Self::read(&lanes, 0)
    }

    /// Writes to `values[at..at + 16]`, dropping lanes past the end.
    #[inline(always)]
    fn write(self, values: &mut [f32], at: usize) {
        let values = &mut values[at..];
        // SAFETY: there are as many values.
        unsafe {
            if values.len() >= LANES {
                self.store(values.as_mut_ptr());
            } else {
                self.store_part(values.as_mut_ptr(), values.len());
            }
        }
    }
}

/// A stored weight element.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// Sixteen elements as `f32`.
    ///
    /// # Safety
    /// `from` is valid for reading sixteen elements.
    unsafe fn load<L: Lanes>(from: *const Self) -> L;

    /// `count <= 16` elements as `f32`, then zeros.
    ///
    /// # Safety
    /// `from` is valid for reading `count` elements.
    unsafe fn load_part<L: Lanes>(from: *const Self, count: usize) -> L;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: as the caller promises.
        unsafe { L::load(from) }
    }
    #[inline(always)]
    unsafe fn load_part<L: Lanes>(from: *const Self, count: usize) -> L {
        // SAFETY: as the caller promises.
        unsafe { L::load_part(from, count) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: as the caller promises.
        unsafe { L::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn load_part<L: Lanes>(from: *const Self, count: usize) -> L {
        // SAFETY: as the caller promises.
        unsafe { L::load_bf16_part(from, count) }
    }
}

impl Real for f32 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self + other
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self - other
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self * other
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self / other
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        f32::mul_add(self, factor, term)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        if self < other { self } else { other }
    }
    #[inline(always)]
    fn where_greater(self, other: Self, yes: Self, no: Self) -> Self {
        if self > other { yes } else { no }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        f32::copysign(self, sign)
    }
    #[inline(always)]
    fn round(self) -> Self {
        self.round_ties_even()
    }
    #[inline(always)]
    fn exp2_integer(self) -> Self {
        f32::from_bits(((self as i32).wrapping_add(127) as u32) << 23)
    }
}

/// Lanes for any processor.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, op: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (a, b) in out.iter_mut().zip(other.0) {
            *a = op(*a, b);
        }
        Self(out)
    }
}

impl Real for Portable {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(std::array::from_fn(|i| {
            f32::mul_add(self.0[i], factor.0[i], term.0[i])
        }))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, Real::max)
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, Real::min)
    }
    #[inline(always)]
    fn where_greater(self, other: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|i| {
            self.0[i].where_greater(other.0[i], yes.0[i], no.0[i])
        }))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        self.zip(sign, f32::copysign)
    }
    #[inline(always)]
    fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    fn exp2_integer(self) -> Self {
        Self(self.0.map(Real::exp2_integer))
    }
}

impl Lanes for Portable {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises; an array of `f32` has the alignment of `f32`.
        Self(unsafe { from.cast::<[f32; LANES]>().read() })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: as the caller promises; an array of `bf16` has the alignment of `bf16`.
        let words = unsafe { from.cast::<[bf16; LANES]>().read() };
        Self(words.map(|word| f32::from_bits(u32::from(word.to_bits()) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises; an array of `f32` has the alignment of `f32`.
        unsafe { to.cast::<[f32; LANES]>().write(self.0) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.0;
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}
