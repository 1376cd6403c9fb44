//! Embedding, norms and silu·mul against the CPU's, and what a product leaves to them.

use xomni_engine::{
    checkpoint::HostTensor,
    ops::{
        Device, MatrixPart, Residual, RmsNorm, TransformerOps, VocabularyPart,
        cpu::Cpu,
        cuda::{Cuda, Precision},
    },
    schedule::Mode,
};

use crate::support::*;

fn stream<'a, O: TransformerOps>(
    h: &'a mut O::Buffer,
    rows: &'a O::Rows,
    width: usize,
    multimodal_only: bool,
    norm: Option<RmsNorm<'a, O>>,
) -> Residual<'a, O> {
    Residual {
        h,
        rows,
        width,
        multimodal_only,
        norm,
    }
}

fn norm<'a, O: TransformerOps>(
    weight: &'a O::Vector,
    out: &'a mut O::Buffer,
) -> Option<RmsNorm<'a, O>> {
    let eps = 1e-6;
    Some(RmsNorm { weight, eps, out })
}

/// Everything that the small operations make of some rows.
fn small_operations<O: TransformerOps>(ops: &O, count: u32, width: usize) -> Vec<Vec<f32>> {
    let rows: Vec<_> = (0..count).map(|r| (r % 3, r / 3, r * 37 % 140)).collect();
    let mut plan = plan(&rows);
    plan.admitted = (0..3).map(|slot| (slot, vec![slot; 128].into())).collect();
    plan.picked.image = (0..count).rev().step_by(2).collect();
    let picked = plan.picked.image.len();
    let mut rows = ops.rows(&LIMITS).unwrap();
    ops.begin(&plan, &mut rows).unwrap();

    // Room for the rows that a device adds.
    let (most, used) = (LIMITS.max_rows, count as usize * width);
    let mut results = Vec::new();
    let mut h = ops.buffer(most * width).unwrap();
    let mut delta = ops.buffer(most * width).unwrap();
    let mut out = ops.activations(most * width).unwrap();
    ops.write(&noise(3, used), &mut delta).unwrap();
    let vector = |seed| ops.vector(&[tensor(&[width], seed)]).unwrap();
    let table = ops
        .table(&[
            MatrixPart {
                rows: 10..100,
                ..MatrixPart::whole(tensor(&[100, width], 4))
            },
            MatrixPart {
                rows: 0..30,
                ..MatrixPart::whole(tensor(&[40, width], 5))
            },
        ])
        .unwrap();
    let part = VocabularyPart {
        text: 10..100,
        multimodal: 0..30,
        text_vocab: 100,
    };
    let (a, b) = (vector(6), vector(7));
    ops.run(&mut rows, false, &mut |rows| {
        ops.embed(&table, &part, rows, &mut h)?;
        results.push(ops.read(&h, used)?);
        let norm = self::norm(&a, &mut out);
        ops.residual(Some(&mut delta), stream(&mut h, rows, width, true, norm))?;
        results.push(ops.read(&h, used)?);
        results.push(ops.read(&out, used)?);
        let norm = self::norm(&b, &mut out);
        ops.residual(None, stream(&mut h, rows, width, false, norm))?;
        results.push(ops.read(&out, used)?);
        ops.residual(Some(&mut delta), stream(&mut h, rows, width, false, None))?;
        results.push(ops.read(&h, used)?);
        ops.final_norm(&h, (&a, &b), rows, Mode::Image, 1e-6, &mut out)?;
        results.push(ops.read(&out, picked * width)?);
        Ok(())
    })
    .unwrap();
    let mut gate_up = ops.activations(2 * used).unwrap();
    let scaled: Vec<f32> = noise(8, 2 * used).iter().map(|v| v * 8.0).collect();
    ops.write(&scaled, &mut gate_up).unwrap();
    ops.silu_mul(&gate_up, count as usize, width, &mut out)
        .unwrap();
    results.push(ops.read(&out, used).unwrap());
    results
}

#[test]
fn small_operations_are_those_of_the_cpu() {
    let _gpu = alone();
    for (count, width) in [(1, 8), (5, 50), (37, 1000), (130, 3584)] {
        let want = small_operations(&Cpu::new(), count, width);
        for (precision, tolerance) in [(Precision::F32, 2e-6), (Precision::Bf16, 4e-3)] {
            let got = small_operations(&gpu(precision), count, width);
            for (number, (got, want)) in got.iter().zip(&want).enumerate() {
                let what = format!("{count} rows of {width} {precision:?}, result {number}");
                assert_close(&what, got, want, tolerance);
            }
        }
    }
}

/// Outputs of the product that reads a norm: of 132 multiprocessors 33 have a quarter of them, two tiles and a quarter each.
const READ: usize = 4600;

/// What a product with the norm of a residual stream makes of it, where what was added came from another product.
fn added_and_read(cuda: &Cuda, rows: usize, width: usize, values: &[f32]) -> (Vec<f32>, Vec<f32>) {
    const CHUNK: usize = 64;
    let cols = 8 * CHUNK;
    let chunks: Vec<_> = (0..8).map(|c| c * CHUNK..(c + 1) * CHUNK).collect();
    let part = MatrixPart::whole(tensor(&[width, cols], 21));
    let first = cuda.matrix_in_chunks(&[part], &chunks).unwrap();
    let quarters: Vec<_> = (0..4).map(|q| q * width / 4..(q + 1) * width / 4).collect();
    let part = MatrixPart::whole(tensor(&[READ, width], 22));
    let second = cuda.matrix_in_chunks(&[part], &quarters).unwrap();
    let weight = cuda
        .vector(&[HostTensor::from_f32("w", &[width], &noise(23, width))])
        .unwrap();
    let mut plan = plan(
        &(0..rows as u32)
            .map(|r| (r % 8, r / 8, r))
            .collect::<Vec<_>>(),
    );
    plan.admitted = (0..8).map(|slot| (slot, (0..8).collect())).collect();
    let mut on_device = cuda.rows(&LIMITS).unwrap();
    let mut x = cuda.activations(rows * cols).unwrap();
    cuda.write(&values[..rows * cols], &mut x).unwrap();
    let mut h = cuda.upload(&noise(24, rows * width)).unwrap();
    let most = LIMITS.max_rows;
    let mut delta = cuda.buffer(most * width).unwrap();
    let mut normed = cuda.activations(most * width).unwrap();
    let mut out = cuda.buffer(most * READ).unwrap();
    cuda.begin(&plan, &mut on_device).unwrap();
    cuda.run(&mut on_device, false, &mut |on_device| {
        cuda.linear_chunked(&x, rows, &first, &chunks, &mut delta)?;
        let norm = self::norm(&weight, &mut normed);
        let to = stream(&mut h, on_device, width, false, norm);
        cuda.residual(Some(&mut delta), to)?;
        cuda.linear_chunked(&normed, rows, &second, &quarters, &mut out)
    })
    .unwrap();
    let stream = cuda.read(&h, rows * width).unwrap();
    (stream, cuda.read(&out, rows * READ).unwrap())
}

#[test]
fn what_a_product_leaves_is_added_and_read_alike_in_any_batch() {
    let _gpu = alone();
    let cuda = gpu(Precision::Bf16);
    // Where planes are dropped, and where their rows are no whole lines.
    for width in [3584, 1000] {
        let most = 512;
        let values = noise(20, most * 512);
        let all = added_and_read(&cuda, most, width, &values);
        for rows in [1, 8, 32, 64, 96, 128, 160, 256] {
            let some = added_and_read(&cuda, rows, width, &values);
            let what = format!("{rows} rows of {width}");
            assert_same_bits(&what, &some.0, &all.0[..rows * width]);
            assert_same_bits(&what, &some.1, &all.1[..rows * READ]);
        }
    }
}
