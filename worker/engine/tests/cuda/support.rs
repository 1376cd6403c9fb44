//! What the tests share.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use half::bf16;
use xomni_engine::{
    checkpoint::HostTensor,
    ops::{
        StepLimits, StepPlan,
        cuda::{Cuda, Precision},
    },
    schedule::{Mode, TokenSource},
};

/// One test at a time has the GPU.
pub fn alone() -> MutexGuard<'static, ()> {
    static GPU: OnceLock<Mutex<()>> = OnceLock::new();
    let gpu = GPU.get_or_init(Mutex::default);
    gpu.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn gpu(precision: Precision) -> Cuda {
    Cuda::open(0, precision).expect("a GPU")
}

/// Reproducible values in `-1.0..1.0`, never zero, that `bf16` holds.
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let value = ((state >> 40) as f32 + 0.5) / (1 << 23) as f32 - 1.0;
            bf16::from_f32(value).to_f32()
        })
        .collect()
}

pub fn tensor(shape: &[usize], seed: u64) -> HostTensor {
    HostTensor::from_f32("w", shape, &noise(seed, shape.iter().product()))
}

/// Root-mean-square error relative to the reference.
pub fn error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = got.iter().zip(want);
    let error = square(&mut difference.map(|(&g, &w)| f64::from(g) - f64::from(w)));
    // All that is wanted may be zeros.
    let size = square(&mut want.iter().map(|&w| f64::from(w))).max(f64::MIN_POSITIVE);
    (error / size).sqrt()
}

#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f64) {
    let error = error(got, want);
    println!("{what}: relative error {error:.2e} (at most {tolerance:.0e})");
    assert!(error < tolerance, "{what}: relative error {error:e}");
}

#[track_caller]
pub fn assert_same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differ = a
        .iter()
        .zip(b)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(i) = differ {
        panic!("{what}: at {i} of {}: {:e} and {:e}", a.len(), a[i], b[i]);
    }
}

pub const LIMITS: StepLimits = StepLimits {
    max_rows: 600,
    slots: 8,
    max_positions: 2048,
    block_size: 16,
    text_vocab: 100,
    window: None,
    kv_heads: 2,
};

/// A step of rows (slot, position, token), of which all are picked for images.
pub fn plan(rows: &[(u32, u32, u32)]) -> StepPlan {
    let mut plan = StepPlan {
        slots: rows.iter().map(|row| row.0).collect(),
        positions: rows.iter().map(|row| row.1).collect(),
        tokens: rows.iter().map(|row| TokenSource::Known(row.2)).collect(),
        ..StepPlan::default()
    };
    *plan.picked.of_mut(Mode::Image) = (0..rows.len() as u32).collect();
    plan
}
