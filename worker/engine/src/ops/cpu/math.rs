//! Elementary functions with the same bits on every machine.
//!
//! The system's libm differs between machines; these use only IEEE operations. The `f32` lane forms
//! are within 2 ulp; [`ln`], [`sin`] and [`cos`] compute in `f64` and are rounded once.

use super::lanes::Real;
use crate::ops::Activation;

/// `e^x`.
pub fn exp(x: f32) -> f32 {
    exp_lanes(x)
}

/// The logistic function.
pub fn sigmoid(x: f32) -> f32 {
    sigmoid_lanes(x)
}

/// The hyperbolic tangent.
pub fn tanh(x: f32) -> f32 {
    tanh_lanes(x)
}

/// The error function.
pub fn erf(x: f32) -> f32 {
    erf_lanes(x)
}

/// The natural logarithm; `-inf` at zero, not a number below.
pub fn ln(x: f32) -> f32 {
    if x <= 0.0 || !x.is_finite() {
        return match x {
            0.0 => f32::NEG_INFINITY,
            f32::INFINITY => f32::INFINITY,
            _ => f32::NAN,
        };
    }
    // Any positive `f32` is a normal `f64`: x = m · 2^e with m in [√½, √2).
    let bits = f64::from(x).to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln m = 2 atanh((m - 1) / (m + 1)).
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for n in (0..12).rev() {
        series = series * square + 1.0 / f64::from(2 * n + 1);
    }
    (f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * series) as f32
}

/// The sine of `x` radians, `|x| < 2^30`.
pub fn sin(x: f32) -> f32 {
    sin_cos(x).0
}

/// The cosine of `x` radians, `|x| < 2^30`.
pub fn cos(x: f32) -> f32 {
    sin_cos(x).1
}

/// Sine and cosine of `x` radians, `|x| < 2^30`.
pub fn sin_cos(x: f32) -> (f32, f32) {
    // π/2 in two parts; the first has 33 bits, so that subtracting its multiple is exact.
    const HALF_PI: f64 = 1.570_796_326_734_125_6;
    const HALF_PI_REST: f64 = 6.077_100_506_506_192e-11;
    let x = f64::from(x);
    let quarter = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = quarter.mul_add(-HALF_PI, x) - quarter * HALF_PI_REST;
    let square = r * r;
    let (mut sine, mut cosine) = (0.0, 0.0);
    for n in (0..9).rev() {
        let n = f64::from(2 * n);
        sine = 1.0 - square / ((n + 2.0) * (n + 3.0)) * sine;
        cosine = 1.0 - square / ((n + 1.0) * (n + 2.0)) * cosine;
    }
    let (sine, cosine) = ((r * sine) as f32, cosine as f32);
    match (quarter as i64).rem_euclid(4) {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// `x` through a non-linearity.
#[inline(always)]
pub(super) fn activation<R: Real>(act: Activation, x: R) -> R {
    match act {
        Activation::Silu => x.mul(sigmoid_lanes(x)),
        Activation::QuickGelu => x.mul(sigmoid_lanes(x.mul(R::splat(1.702)))),
        Activation::GeluErf => {
            let erf = erf_lanes(x.mul(R::splat(std::f32::consts::FRAC_1_SQRT_2)));
            x.mul(R::splat(0.5)).mul(R::splat(1.0).add(erf))
        }
        Activation::GeluTanh => {
            /// √(2/π).
            const SCALE: f32 = 0.797_884_6;
            let cube = x.mul(x).mul(x);
            let inner = R::splat(SCALE).mul(cube.mul_add(R::splat(0.044715), x));
            x.mul(R::splat(0.5))
                .mul(R::splat(1.0).add(tanh_lanes(inner)))
        }
    }
}

/// `e^x`: `x = n ln 2 + r`, a polynomial in `r` (Cephes `expf`), and `2^n` in two factors so that
/// neither overflow nor denormal results come early.
#[inline(always)]
pub(super) fn exp_lanes<R: Real>(x: R) -> R {
    let x = R::splat(89.0).min(R::splat(-104.5).max(x));
    let n = x.mul(R::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(R::splat(-0.693_359_4), x);
    let r = n.mul_add(R::splat(2.121_944_4e-4), r);
    let mut p = R::splat(1.987_569_1e-4);
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p.mul_add(r, R::splat(coefficient));
    }
    let e = p.mul_add(r.mul(r), r).add(R::splat(1.0));
    let half = n.mul(R::splat(0.5)).round();
    e.mul(half.exp2_integer()).mul(n.sub(half).exp2_integer())
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid_lanes<R: Real>(x: R) -> R {
    let one = R::splat(1.0);
    one.div(one.add(exp_lanes(R::splat(0.0).sub(x))))
}

/// An odd polynomial near zero (Cephes `tanhf`), `1 - 2 / (e^2x + 1)` elsewhere.
#[inline(always)]
pub(super) fn tanh_lanes<R: Real>(x: R) -> R {
    let (one, two) = (R::splat(1.0), R::splat(2.0));
    let size = x.abs();
    let far = one
        .sub(two.div(exp_lanes(size.mul(two)).add(one)))
        .copysign(x);
    let square = x.mul(x);
    let mut p = R::splat(-5.704_988e-3);
    for coefficient in [2.063_909e-2, -5.373_971e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = p.mul_add(square, R::splat(coefficient));
    }
    let near = p.mul(square).mul_add(x, x);
    size.where_greater(R::splat(0.625), far, near)
}

/// An odd polynomial near zero, `1 - e^p(|x|)` elsewhere (the coefficients are N. Juffa's).
#[inline(always)]
pub(super) fn erf_lanes<R: Real>(x: R) -> R {
    let size = x.abs();
    let square = x.mul(x);
    let mut p = R::splat(-1.728_534_7e-5).mul_add(size, R::splat(3.831_971_3e-4));
    let q = R::splat(-3.883_964_4e-3).mul_add(size, R::splat(2.425_462_2e-2));
    p = p.mul_add(square, q);
    for coefficient in [-1.067_778_8e-1, -6.348_467e-1, -1.287_175_1e-1] {
        p = p.mul_add(size, R::splat(coefficient));
    }
    p = p.mul_add(size, R::splat(0.0).sub(size));
    let far = R::splat(1.0).sub(exp_lanes(p)).copysign(x);
    let mut p = R::splat(-5.967_617e-4);
    for coefficient in [
        4.991_194e-3,
        -2.676_813_5e-2,
        1.128_199_25e-1,
        -3.761_253_4e-1,
        1.283_791_7e-1,
    ] {
        p = p.mul_add(square, R::splat(coefficient));
    }
    let near = p.mul_add(x, x);
    size.where_greater(R::splat(0.927_734_4), far, near)
}

#[cfg(test)]
mod tests;
