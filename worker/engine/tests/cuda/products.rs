//! Products: against the CPU's, and the same bits in every tiling.

use std::ops::Range;

use xomni_engine::ops::{
    Device, MatrixPart, TransformerOps,
    cpu::Cpu,
    cuda::{Cuda, Precision},
};

use crate::support::*;

/// Rows, outputs, columns.
const SHAPES: [(usize, usize, usize); 11] = [
    (1, 1, 1),
    (3, 17, 33),
    (9, 40, 100),
    (70, 24, 296),
    (1, 16, 256),
    (8, 100, 512),
    (17, 72, 768),
    (65, 200, 3584),
    (130, 8200, 256),
    (300, 192, 512),
    (24, 64, 9472),
];

fn product<O: TransformerOps>(
    ops: &O,
    (rows, outs, cols): (usize, usize, usize),
    x: &[f32],
    wide: bool,
) -> Vec<f32> {
    let parts: Vec<MatrixPart> = [0..outs / 3, outs / 3..outs]
        .into_iter()
        .map(|part| MatrixPart {
            rows: part,
            ..MatrixPart::whole(tensor(&[outs, cols], 2))
        })
        .collect();
    let w = ops.matrix(&parts).unwrap();
    let bias = ops.vector(&[tensor(&[outs], 3)]).unwrap();
    let mut input = ops.activations(rows * cols).unwrap();
    ops.write(&x[..rows * cols], &mut input).unwrap();
    let mut out = match wide {
        true => ops.buffer(rows * outs).unwrap(),
        false => ops.activations(rows * outs).unwrap(),
    };
    // What is not written shows.
    ops.write(&vec![f32::NAN; rows * outs], &mut out).unwrap();
    ops.linear(&input, rows, &w, Some(&bias), &mut out).unwrap();
    ops.download(&out).unwrap()
}

#[test]
fn products_are_those_of_the_cpu() {
    let _gpu = alone();
    for shape in SHAPES {
        let x = noise(1, shape.0 * shape.2);
        let want = product(&Cpu::new(), shape, &x, true);
        for (precision, wide, tolerance) in [
            (Precision::F32, true, 1e-5),
            (Precision::Bf16, true, 1e-5),
            (Precision::Bf16, false, 4e-3),
        ] {
            let got = product(&gpu(precision), shape, &x, wide);
            let what = format!("{shape:?} {precision:?} wide {wide}");
            assert_close(&what, &got, &want, tolerance);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let _gpu = alone();
    for (outs, cols) in [(100, 512), (8200, 256), (12290, 72), (40, 296), (72, 1792)] {
        let most = 512;
        let x = noise(5, most * cols);
        let cuda = gpu(Precision::Bf16);
        let all = product(&cuda, (most, outs, cols), &x, true);
        for rows in [
            1, 2, 7, 8, 9, 15, 16, 17, 24, 33, 40, 48, 56, 64, 65, 72, 96, 100, 128, 150, 192, 200,
            256,
        ] {
            let some = product(&cuda, (rows, outs, cols), &x, true);
            let what = format!("{rows} rows of {outs}×{cols}");
            assert_same_bits(&what, &some, &all[..rows * outs]);
        }
        // The last rows, alone.
        let last = product(&cuda, (1, outs, cols), &x[(most - 1) * cols..], true);
        assert_same_bits("the last row", &last, &all[(most - 1) * outs..]);
    }
}

fn chunked(
    cuda: &Cuda,
    rows: usize,
    outs: usize,
    held: Range<usize>,
    chunks: &[Range<usize>],
    x: &[f32],
    cols: usize,
) -> <Cuda as Device>::Buffer {
    let local: Vec<_> = chunks
        .iter()
        .map(|c| c.start - held.start..c.end - held.start)
        .collect();
    let part = MatrixPart {
        cols: held.clone(),
        ..MatrixPart::whole(tensor(&[outs, cols], 7))
    };
    let w = cuda
        .matrix_in_chunks(std::slice::from_ref(&part), &local)
        .unwrap();
    let mine: Vec<f32> = x
        .chunks_exact(cols)
        .flat_map(|row| row[held.clone()].to_vec())
        .collect();
    let mut input = cuda.activations(mine.len()).unwrap();
    cuda.write(&mine, &mut input).unwrap();
    let mut out = cuda.buffer(rows * outs).unwrap();
    cuda.linear_chunked(&input, rows, &w, &local, &mut out)
        .unwrap();
    out
}

#[test]
fn chunks_of_any_number_of_ranks_sum_to_the_same_bits() {
    let _gpu = alone();
    let bounds = |lengths: [usize; 8]| {
        let mut at = 0;
        lengths.map(|length| {
            at += length;
            at - length..at
        })
    };
    for lengths in [
        [64, 32, 64, 32, 64, 32, 64, 32],
        [37; 8],
        [5, 0, 33, 64, 1, 70, 32, 9],
    ] {
        let chunks = bounds(lengths);
        let cols = chunks[7].end;
        for (rows, outs) in [
            (1, 90),
            (20, 90),
            (70, 90),
            (140, 1300),
            (200, 3560),
            (200, 4600),
            (200, 8448),
            (300, 2500),
        ] {
            let x = noise(8, rows * cols);
            let cuda = gpu(Precision::Bf16);
            let whole = chunked(&cuda, rows, outs, 0..cols, &chunks, &x, cols);
            let whole = cuda.download(&whole).unwrap();
            for few in [1, 30, 128, 150, 200] {
                let few = few.min(rows);
                let some = chunked(&cuda, few, outs, 0..cols, &chunks, &x[..few * cols], cols);
                let some = cuda.download(&some).unwrap();
                assert_same_bits(
                    &format!("{few} of {rows} rows"),
                    &some,
                    &whole[..few * outs],
                );
            }
            let cpu = Cpu::new();
            let w = cpu
                .matrix(&[MatrixPart::whole(tensor(&[outs, cols], 7))])
                .unwrap();
            let mut want = cpu.buffer(rows * outs).unwrap();
            cpu.linear_chunked(&cpu.upload(&x).unwrap(), rows, &w, &chunks, &mut want)
                .unwrap();
            assert_close("chunks", &whole, &cpu.download(&want).unwrap(), 1e-5);
            for ranks in [2, 4, 8] {
                let parts: Vec<f32> = chunks
                    .chunks_exact(8 / ranks)
                    .flat_map(|mine| {
                        let held = mine[0].start..mine[mine.len() - 1].end;
                        if held.is_empty() {
                            return vec![0.0; rows * outs];
                        }
                        let part = chunked(&cuda, rows, outs, held, mine, &x, cols);
                        cuda.download(&part).unwrap()
                    })
                    .collect();
                let mut sum = cuda.buffer(rows * outs).unwrap();
                let parts = cuda.upload(&parts).unwrap();
                cuda.tree_sum(&parts, ranks, rows * outs, &mut sum).unwrap();
                let sum = cuda.download(&sum).unwrap();
                assert_same_bits(&format!("{ranks} ranks, {rows} rows"), &sum, &whole);
            }
        }
    }
}

/// `silu(gate) · up` of rows of `x`.
fn gated<O: TransformerOps>(
    ops: &O,
    (rows, width, cols): (usize, usize, usize),
    x: &[f32],
) -> Vec<f32> {
    let part = |seed| MatrixPart {
        rows: 3..3 + width,
        ..MatrixPart::whole(tensor(&[width + 5, cols], seed))
    };
    let w = ops.gated_matrix(part(11), part(12)).unwrap();
    let mut input = ops.activations(rows * cols).unwrap();
    ops.write(&x[..rows * cols], &mut input).unwrap();
    let mut scratch = ops.activations(2 * rows * width).unwrap();
    let mut out = ops.activations(rows * width).unwrap();
    ops.write(&vec![f32::NAN; rows * width], &mut out).unwrap();
    ops.linear_gated(&input, rows, &w, width, &mut scratch, &mut out)
        .unwrap();
    ops.download(&out).unwrap()
}

#[test]
fn gated_products_are_those_of_the_cpu_and_alike_in_any_batch() {
    let _gpu = alone();
    // The last six have shares of one tile and a quarter, one and a half, two, two and a quarter, two and a half, three and a quarter.
    for (width, cols) in [
        (40, 64),
        (33, 96),
        (1000, 256),
        (129, 1792),
        (12, 7),
        (4990, 64),
        (6130, 64),
        (8200, 64),
        (9080, 64),
        (10040, 64),
        (12700, 72),
    ] {
        let most = 300;
        let x = noise(13, most * cols);
        let want = gated(&Cpu::new(), (most, width, cols), &x);
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 1e-2)] {
            let cuda = gpu(precision);
            let all = gated(&cuda, (most, width, cols), &x);
            assert_close(
                &format!("{width}×{cols} {precision:?}"),
                &all,
                &want,
                tolerance,
            );
            for rows in [1, 8, 11, 24, 64, 80, 128, 192, 256] {
                let some = gated(&cuda, (rows, width, cols), &x);
                assert_same_bits(&format!("{rows} rows"), &some, &all[..rows * width]);
            }
        }
    }
}
