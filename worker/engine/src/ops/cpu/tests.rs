//! Every operation against plain `f64` arithmetic, and bit for bit against itself on every
//! instruction set, with any number of threads and among any neighbours.

mod attention;
mod image;
mod products;
mod rows;

use half::{bf16, f16};

use super::*;
use crate::{
    checkpoint::tensor::{DType, TensorBytes},
    ops::TransformerOps,
};

/// Reproducible values in `-1.0..1.0`, never zero.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 + 0.5) / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// `values` as a stored tensor of `dtype`, `skip` bytes into its heap block.
fn stored(dtype: DType, shape: &[usize], values: &[f32], skip: usize) -> HostTensor {
    let mut bytes = vec![0; skip];
    for &value in values {
        match dtype {
            DType::F32 => bytes.extend(value.to_le_bytes()),
            DType::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            DType::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
        }
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    // SAFETY: nobody else knows the file.
    #[expect(unsafe_code, reason = "a mapped file is what is tested")]
    let map = unsafe { memmap2::Mmap::map(file.as_file()) }.unwrap();
    let bytes = TensorBytes::Mapped {
        map: map.into(),
        offset: skip,
        len: values.len() * dtype.size(),
    };
    HostTensor::new("w", &file.path().into(), dtype, shape, bytes)
}

fn matrix(cpu: Cpu, tensor: &HostTensor) -> Matrix {
    cpu.matrix(&[MatrixPart::whole(tensor.clone())]).unwrap()
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Asserts a root-mean-square error below `tolerance` relative to the reference.
#[track_caller]
fn assert_close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = square(&mut got.iter().zip(want).map(|(&g, w)| f64::from(g) - w));
    let size = square(&mut want.iter().copied());
    let relative = (error / size).sqrt();
    assert!(relative < tolerance, "relative error {relative:e}");
}

#[track_caller]
fn assert_same_bits(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "at {i}: {a:e} and {b:e}");
    }
}

/// Runs `op` on every instruction set with one and with three threads; all results must have the
/// same bits. Returns them.
#[track_caller]
fn everywhere(op: impl Fn(Cpu) -> Vec<f32> + Sync) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let got = pool.install(|| op(Cpu::with_isa(isa)));
            match &first {
                None => first = Some(got),
                Some(first) => assert_same_bits(first, &got),
            }
        }
    }
    first.unwrap()
}

#[test]
fn sizes_are_checked() {
    let cpu = Cpu::new();
    let w = matrix(cpu, &HostTensor::from_f32("w", &[2, 3], &noise(1, 6)));
    let x = cpu.upload(&noise(2, 5)).unwrap();
    let mut out = cpu.buffer(4).unwrap();
    let error = cpu.linear(&x, 2, &w, None, &mut out).unwrap_err();
    assert_eq!(error.to_string(), "linear: x has 5 values, 6 needed");
    assert!(cpu.linear(&x, 1, &w, Some(&vec![1.0]), &mut out).is_err());
    assert!(
        cpu.linear_chunked(&x, 1, &w, &[0..1, 1..2, 2..3], &mut out)
            .is_err()
    );
    assert!(
        cpu.linear_chunked(&x, 1, &w, &[0..1, 1..4], &mut out)
            .is_err()
    );
    assert!(cpu.embed_ids(&w, &[Some(2)], &mut out).is_err());
    assert!(cpu.tree_sum(&x, 3, 1, &mut out).is_err() && cpu.tree_sum(&x, 2, 3, &mut out).is_err());
    for widths in [&[1, 2][..], &[2, 1, 2], &[2, 2, 2]] {
        assert!(cpu.concat_columns(&x, widths, 1, &mut out).is_err());
    }
    let tensor = HostTensor::from_f32("w", &[2, 3], &noise(1, 6));
    assert!(
        cpu.matrix(&[MatrixPart {
            tensor,
            rows: 1..3,
            cols: 0..3
        }])
        .is_err()
    );
}
