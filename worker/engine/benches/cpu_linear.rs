//! Matrix products of the CPU backend at the shapes of the 7B backbone, with bf16 weights.
//!
//! One row is bound by memory and compared with a plain streaming read of the same memory on the
//! same threads; 64 rows are bound by arithmetic and compared with the `gemm` crate in `f32`.
//! Results are checked before they are timed.

#![allow(unsafe_code, reason = "memory is read as fast as the processor can")]
#![allow(missing_docs, reason = "a program has no public items")]

use std::{
    hint::black_box,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use half::bf16;
use rayon::prelude::*;
use xomni_engine::{
    Result,
    checkpoint::{DType, HostTensor, tensor::TensorBytes},
    ops::{
        Device, MatrixPart,
        cpu::{Cpu, Matrix},
    },
};

/// Name, outputs, inputs.
const SHAPES: [(&str, usize, usize); 5] = [
    ("qkv", 4608, 3584),
    ("o", 3584, 3584),
    ("gate+up", 37888, 3584),
    ("down", 3584, 18944),
    ("image head", 16384, 3584),
];
/// Bytes of weights; a shape's copies are spread over them so that no cache holds any.
const WEIGHT_BYTES: usize = 1 << 30;
/// Rows of the arithmetic-bound case.
const ROWS: usize = 64;
/// Time spent on each comparison, and its least number of runs.
const BUDGET: (Duration, usize) = (Duration::from_secs(3), 9);

fn main() -> Result<()> {
    let cpu = Cpu::new();
    let words = random_words(WEIGHT_BYTES / 4);
    let streams = fastest_read(&words);
    println!(
        "{} on {} threads, bf16 weights; reading {streams} streams a thread",
        cpu.isa(),
        rayon::current_num_threads()
    );
    row([
        "shape",
        "1 row µs",
        "GB/s",
        "read GB/s",
        "% of read",
        "64 rows ms",
        "GFLOP/s",
        "gemm",
        "time/gemm",
    ]
    .map(str::to_owned));
    let largest = SHAPES
        .iter()
        .map(|(_, outs, cols)| outs * cols)
        .max()
        .unwrap_or(0);
    let dense: Vec<f32> = (0..largest)
        .into_par_iter()
        .map(|i| weight(&words, i).to_f32())
        .collect();
    for (name, outs, cols) in SHAPES {
        let bytes = outs * cols * 2;
        let copies = (0..WEIGHT_BYTES / bytes)
            .map(|copy| matrix(cpu, &words, outs, cols, copy))
            .collect::<Result<Vec<_>>>()?;
        let x: Vec<f32> = (0..ROWS * cols)
            .map(|i| weight(&words, i * 7 + 3).to_f32())
            .collect();
        validate(cpu, &x, &words, &copies[0], outs, cols)?;

        let one = cpu.upload(&x[..cols])?;
        let mut out = cpu.buffer(outs)?;
        let mut step = 0;
        let [single, read] = measure([
            &mut || {
                step += 1;
                cpu.linear(&one, 1, &copies[step % copies.len()], None, &mut out)
            },
            &mut || {
                read(&words, streams);
                Ok(())
            },
        ])?;
        let many = cpu.upload(&x)?;
        let mut out = cpu.buffer(ROWS * outs)?;
        let mut theirs = vec![0.0; ROWS * outs];
        let [own, gemm] = measure([
            &mut || {
                step += 1;
                cpu.linear(&many, ROWS, &copies[step % copies.len()], None, &mut out)
            },
            &mut || {
                gemm_f32(&x, &dense[..outs * cols], &mut theirs, outs, cols);
                Ok(())
            },
        ])?;

        let bandwidth = bytes as f64 / single / 1e9;
        let reading = WEIGHT_BYTES as f64 / read / 1e9;
        let flops = 2.0 * (ROWS * outs * cols) as f64 / 1e9;
        row([
            name.to_owned(),
            format!("{:.0}", single * 1e6),
            format!("{bandwidth:.1}"),
            format!("{reading:.1}"),
            format!("{:.0} %", 100.0 * bandwidth / reading),
            format!("{:.1}", own * 1e3),
            format!("{:.0}", flops / own),
            format!("{:.0}", flops / gemm),
            format!("{:.2}", own / gemm),
        ]);
    }
    Ok(())
}

fn row(cells: [String; 9]) {
    let [name, rest @ ..] = cells;
    print!("{name:<12}");
    for cell in rest {
        print!("{cell:>12}");
    }
    println!();
}

/// Pairs of bf16 values between 2⁻⁸ and 1 in magnitude.
fn random_words(len: usize) -> Arc<Vec<u32>> {
    (0..len as u64)
        .into_par_iter()
        .map(|i| {
            let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let half = |r: u32| (r & 0x807f) | ((119 + (r >> 8 & 7)) << 7);
            half(z as u32 & 0xffff) | half((z >> 32) as u32 & 0xffff) << 16
        })
        .collect::<Vec<_>>()
        .into()
}

/// Element `index` of the weights.
fn weight(words: &[u32], index: usize) -> bf16 {
    let word = words[index / 2 % words.len()];
    bf16::from_bits(if index.is_multiple_of(2) {
        word as u16
    } else {
        (word >> 16) as u16
    })
}

fn matrix(
    cpu: Cpu,
    words: &Arc<Vec<u32>>,
    outs: usize,
    cols: usize,
    copy: usize,
) -> Result<Matrix> {
    let stored = words.len() * 2 / cols;
    let bytes = TensorBytes::Owned(words.clone(), stored * cols * 2);
    let tensor = HostTensor::new(
        "w",
        &Path::new("").into(),
        DType::Bf16,
        &[stored, cols],
        bytes,
    );
    cpu.matrix(&[MatrixPart {
        tensor,
        rows: copy * outs..(copy + 1) * outs,
        cols: 0..cols,
    }])
}

/// A sample of the outputs against `f64`, and 64 rows against one row bit for bit.
fn validate(
    cpu: Cpu,
    x: &[f32],
    words: &[u32],
    w: &Matrix,
    outs: usize,
    cols: usize,
) -> Result<()> {
    let mut out = cpu.buffer(ROWS * outs)?;
    cpu.linear(&cpu.upload(x)?, ROWS, w, None, &mut out)?;
    let many = cpu.download(&out)?;
    for sample in 0..200 {
        let (r, o) = (sample * 31 % ROWS, sample * 7919 % outs);
        let terms =
            (0..cols).map(|i| f64::from(x[r * cols + i]) * weight(words, o * cols + i).to_f64());
        let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
        let error = (f64::from(many[r * outs + o]) - exact).abs() / size;
        assert!(
            error < 1e-6,
            "row {r}, output {o}: relative error {error:e}"
        );
    }
    for r in [0, 1, ROWS - 1] {
        let mut out = cpu.buffer(outs)?;
        cpu.linear(&cpu.upload(&x[r * cols..][..cols])?, 1, w, None, &mut out)?;
        let one = cpu.download(&out)?;
        let same = one
            .iter()
            .zip(&many[r * outs..])
            .all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "row {r} alone differs from row {r} of {ROWS}");
    }
    Ok(())
}

/// Median seconds of each of `runs`, taken in turn so that all see the same machine.
fn measure<const N: usize>(mut runs: [&mut dyn FnMut() -> Result<()>; N]) -> Result<[f64; N]> {
    let mut times = [(); N].map(|()| Vec::new());
    let start = Instant::now();
    while start.elapsed() < BUDGET.0 || times[0].len() < BUDGET.1 {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            let begin = Instant::now();
            run()?;
            times.push(begin.elapsed().as_secs_f64());
        }
    }
    Ok(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}

/// Reads all words on all threads, each as so many parallel streams.
fn read(words: &[u32], streams: usize) {
    let part = words.len() / (streams * 16 * rayon::current_num_threads());
    words.par_chunks(part * streams).for_each(|words| {
        black_box(sum(words, part));
    });
}

/// The number of streams that reads fastest.
fn fastest_read(words: &[u32]) -> usize {
    let counts = [1, 2, 4, 8];
    let best = |streams: usize| {
        let times = (0..5).map(|_| {
            let begin = Instant::now();
            read(words, streams);
            begin.elapsed()
        });
        times.min()
    };
    counts
        .into_iter()
        .min_by_key(|&streams| best(streams))
        .unwrap_or(1)
}

fn sum(words: &[u32], part: usize) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512.
        return unsafe { sum_avx512(words, part) };
    }
    sum_streams(words, part)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(words: &[u32], part: usize) -> u32 {
    sum_streams(words, part)
}

/// The wrapping sum of words, read as parallel streams of `part` words.
#[inline(always)]
fn sum_streams(words: &[u32], part: usize) -> u32 {
    const STEP: usize = 128;
    let mut lanes = [0_u32; STEP];
    for at in (0..part - part % STEP).step_by(STEP) {
        for stream in words.chunks_exact(part) {
            for (lane, word) in lanes.iter_mut().zip(&stream[at..at + STEP]) {
                *lane = lane.wrapping_add(*word);
            }
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

/// `out = x · wᵀ` by the `gemm` crate on the same threads.
fn gemm_f32(x: &[f32], w: &[f32], out: &mut [f32], outs: usize, cols: usize) {
    let rows = x.len() / cols;
    assert!(w.len() == outs * cols && out.len() == rows * outs);
    // SAFETY: the strides and sizes describe the three slices, as just checked.
    unsafe {
        gemm::gemm(
            rows,
            outs,
            cols,
            out.as_mut_ptr(),
            1,
            outs as isize,
            false,
            x.as_ptr(),
            1,
            cols as isize,
            w.as_ptr(),
            cols as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}
