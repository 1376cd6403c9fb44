use super::*;

/// Error function by its series (small `x`) or continued fraction.
fn erf64(x: f64) -> f64 {
    if x < 0.0 {
        return -erf64(-x);
    }
    if x < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let mut fraction = x;
    for n in (1..60).rev() {
        fraction = x + f64::from(n) * 0.5 / fraction;
    }
    1.0 - (-x * x).exp() / fraction / std::f64::consts::PI.sqrt()
}

/// Largest error in units of the last place of the result (of the smallest normal near zero).
fn worst(range: (f32, f32), f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
    let mut worst: f64 = 0.0;
    for i in 0..=200_000 {
        let x = range.0 + (range.1 - range.0) * (i as f32 / 200_000.0);
        let want = exact(f64::from(x));
        let rounded = (want as f32).abs().max(f32::MIN_POSITIVE);
        let ulp = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
        let error = (f64::from(f(x)) - want).abs() / ulp;
        assert!(error.is_finite(), "{x}: {} for {want}", f(x));
        worst = worst.max(error);
    }
    worst
}

#[test]
fn functions_are_accurate() {
    assert!(worst((-103.0, 88.7), exp, f64::exp) < 1.5);
    assert!(worst((-1.0, 1.0), exp, f64::exp) < 1.5);
    assert!(worst((-20.0, 20.0), sigmoid, |x| 1.0 / (1.0 + (-x).exp())) < 2.5);
    assert!(worst((-10.0, 10.0), tanh, f64::tanh) < 2.5);
    assert!(worst((-1.0, 1.0), tanh, f64::tanh) < 2.5);
    assert!(worst((-5.0, 5.0), erf, erf64) < 1.5);
    assert!(worst((1e-6, 3.0), ln, f64::ln) < 0.51);
    assert!(worst((1e-40, 1e-38), ln, f64::ln) < 0.51);
    assert!(worst((1.0, 3e38), ln, f64::ln) < 0.51);
    for span in [1.0, 10.0, 6000.0, 200_000.0] {
        assert!(worst((-span, span), sin, f64::sin) < 0.51, "sin to {span}");
        assert!(worst((-span, span), cos, f64::cos) < 0.51, "cos to {span}");
    }
}

#[test]
fn limits_are_exact() {
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(f32::INFINITY), f32::INFINITY);
    assert!(exp(f32::NAN).is_nan());
    assert_eq!(ln(1.0), 0.0);
    assert_eq!(ln(0.0), f32::NEG_INFINITY);
    assert_eq!(ln(f32::INFINITY), f32::INFINITY);
    assert!(ln(-1.0).is_nan() && ln(f32::NAN).is_nan());
    assert_eq!((sigmoid(-200.0), sigmoid(200.0)), (0.0, 1.0));
    assert_eq!((tanh(-50.0), tanh(50.0)), (-1.0, 1.0));
    assert_eq!((erf(-9.0), erf(9.0)), (-1.0, 1.0));
    assert_eq!((sin(0.0), cos(0.0)), (0.0, 1.0));
}
