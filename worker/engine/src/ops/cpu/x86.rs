//! Lane types of x86-64: one AVX-512 register, or two AVX2 registers.
//!
//! # Safety
//! Every method is a handful of register instructions, sound on processors that have them;
//! [`super::dispatch::Isa::run`] is the only way in and has checked that.

#![allow(
    unsafe_code,
    reason = "vector instructions read and write through pointers"
)]

use std::arch::x86_64::*;

use half::bf16;

use super::lanes::{Lanes, Real};

/// One AVX-512 register.
#[derive(Clone, Copy)]
pub(super) struct Zmm(__m512);

/// Two AVX registers: lanes 0 to 7 and 8 to 15.
#[derive(Clone, Copy)]
pub(super) struct Ymm(__m256, __m256);

/// 4 + 4, 2 + 2, 1 + 1.
#[inline(always)]
fn sum_of_eight(eight: __m256) -> f32 {
    // SAFETY: see the module; both users have AVX.
    unsafe {
        let four = _mm_add_ps(
            _mm256_castps256_ps128(eight),
            _mm256_extractf128_ps::<1>(eight),
        );
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// The first `count <= 16` lanes.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1_u32 << count) - 1) as __mmask16
}

macro_rules! zmm {
    ($($intrinsic:tt)*) => {
        // SAFETY: see the module: the processor has AVX-512 F, BW, DQ and VL.
        Zmm(unsafe { $($intrinsic)* })
    };
}

impl Real for Zmm {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        zmm!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        zmm!(_mm512_add_ps(self.0, other.0))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        zmm!(_mm512_sub_ps(self.0, other.0))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        zmm!(_mm512_mul_ps(self.0, other.0))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        zmm!(_mm512_div_ps(self.0, other.0))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        zmm!(_mm512_fmadd_ps(self.0, factor.0, term.0))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        zmm!(_mm512_max_ps(self.0, other.0))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        zmm!(_mm512_min_ps(self.0, other.0))
    }
    #[inline(always)]
    fn where_greater(self, other: Self, yes: Self, no: Self) -> Self {
        zmm!({
            let greater = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0);
            _mm512_mask_blend_ps(greater, no.0, yes.0)
        })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        zmm!(_mm512_abs_ps(self.0))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        zmm!({
            let mask = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(mask, self.0), _mm512_and_ps(mask, sign.0))
        })
    }
    #[inline(always)]
    fn round(self) -> Self {
        zmm!(_mm512_roundscale_ps::<
            { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
        >(self.0))
    }
    #[inline(always)]
    fn exp2_integer(self) -> Self {
        zmm!({
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        })
    }
}

impl Lanes for Zmm {
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        zmm!(_mm512_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        zmm!({
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        })
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        zmm!(_mm512_maskz_loadu_ps(first(count), from))
    }
    #[inline(always)]
    unsafe fn load_bf16_part(from: *const bf16, count: usize) -> Self {
        zmm!({
            let words = _mm256_maskz_loadu_epi16(first(count), from.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)))
        })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        // SAFETY: as the caller promises.
        unsafe { _mm512_mask_storeu_ps(to, first(count), self.0) }
    }
    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: prefetching never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see the module.
        let eight = unsafe {
            _mm256_add_ps(
                _mm512_castps512_ps256(self.0),
                _mm512_extractf32x8_ps::<1>(self.0),
            )
        };
        sum_of_eight(eight)
    }
}

macro_rules! ymm {
    ($low:expr, $high:expr) => {{
        // SAFETY: see the module: the processor has AVX2 and FMA.
        unsafe { Ymm($low, $high) }
    }};
}

impl Real for Ymm {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        ymm!(_mm256_set1_ps(value), _mm256_set1_ps(value))
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        ymm!(
            _mm256_add_ps(self.0, other.0),
            _mm256_add_ps(self.1, other.1)
        )
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        ymm!(
            _mm256_sub_ps(self.0, other.0),
            _mm256_sub_ps(self.1, other.1)
        )
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        ymm!(
            _mm256_mul_ps(self.0, other.0),
            _mm256_mul_ps(self.1, other.1)
        )
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        ymm!(
            _mm256_div_ps(self.0, other.0),
            _mm256_div_ps(self.1, other.1)
        )
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        ymm!(
            _mm256_fmadd_ps(self.0, factor.0, term.0),
            _mm256_fmadd_ps(self.1, factor.1, term.1)
        )
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        ymm!(
            _mm256_max_ps(self.0, other.0),
            _mm256_max_ps(self.1, other.1)
        )
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        ymm!(
            _mm256_min_ps(self.0, other.0),
            _mm256_min_ps(self.1, other.1)
        )
    }
    #[inline(always)]
    fn where_greater(self, other: Self, yes: Self, no: Self) -> Self {
        ymm!(
            _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0)),
            _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_GT_OQ>(self.1, other.1))
        )
    }
    #[inline(always)]
    fn abs(self) -> Self {
        ymm!(
            _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0),
            _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.1)
        )
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        let bare = self.abs();
        ymm!(
            _mm256_or_ps(bare.0, _mm256_and_ps(_mm256_set1_ps(-0.0), sign.0)),
            _mm256_or_ps(bare.1, _mm256_and_ps(_mm256_set1_ps(-0.0), sign.1))
        )
    }
    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        ymm!(
            _mm256_round_ps::<NEAREST>(self.0),
            _mm256_round_ps::<NEAREST>(self.1)
        )
    }
    #[inline(always)]
    fn exp2_integer(self) -> Self {
        #[inline(always)]
        unsafe fn half(n: __m256) -> __m256 {
            // SAFETY: see the module.
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            }
        }
        ymm!(half(self.0), half(self.1))
    }
}

impl Lanes for Ymm {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        ymm!(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        #[inline(always)]
        unsafe fn half(from: *const bf16) -> __m256 {
            // SAFETY: as the caller promises.
            unsafe {
                let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
            }
        }
        ymm!(half(from), half(from.add(8)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: prefetching never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see the module.
        sum_of_eight(unsafe { _mm256_add_ps(self.0, self.1) })
    }
}
