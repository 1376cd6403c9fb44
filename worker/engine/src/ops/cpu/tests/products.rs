use super::*;

/// `[rows, outs]` in `f64`.
fn product64(x: &[f32], w: &[f32], bias: &[f32], cols: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        for (o, w) in w.chunks_exact(cols).enumerate() {
            let dot: f64 = widen(x).iter().zip(widen(w)).map(|(x, w)| x * w).sum();
            out.push(dot + bias.get(o).copied().map_or(0.0, f64::from));
        }
    }
    out
}

fn linear(cpu: Cpu, x: &[f32], rows: usize, w: &Matrix, bias: Option<&Vec<f32>>) -> Vec<f32> {
    let mut out = cpu.buffer(rows * w.rows()).unwrap();
    cpu.linear(&cpu.upload(x).unwrap(), rows, w, bias, &mut out)
        .unwrap();
    cpu.download(&out).unwrap()
}

#[test]
fn linear_is_the_product() {
    for (rows, outs, cols) in [
        (1, 1, 1),
        (1, 9, 17),
        (2, 5, 16),
        (3, 50, 33),
        (7, 13, 100),
        (67, 101, 1041),
        (5, 6, 512),
    ] {
        let x = noise(1, rows * cols);
        let bias = noise(3, outs);
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let w = stored(dtype, &[outs, cols], &noise(2, outs * cols), 0);
            let want = product64(&x, &w.to_f32(), &bias, cols);
            let got = everywhere(|cpu| linear(cpu, &x, rows, &matrix(cpu, &w), Some(&bias)));
            assert_close(&got, &want, 1e-6);
        }
    }
}

#[test]
fn a_dot_product_has_sixteen_lanes() {
    let cols = 41;
    let (x, w) = (noise(1, cols), noise(2, cols));
    let mut lanes = [0.0_f32; 16];
    for k in 0..cols {
        lanes[k % 16] = x[k].mul_add(w[k], lanes[k % 16]);
    }
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    let w = HostTensor::from_f32("w", &[1, cols], &w);
    let got = everywhere(|cpu| linear(cpu, &x, 1, &matrix(cpu, &w), None));
    assert_same_bits(&got, &lanes[..1]);
}

#[test]
fn a_row_does_not_see_its_neighbours() {
    let (outs, cols) = (131, 1100);
    let w = stored(DType::Bf16, &[outs, cols], &noise(2, outs * cols), 0);
    let x = noise(1, 150 * cols);
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa);
        let w = matrix(cpu, &w);
        let all = linear(cpu, &x, 150, &w, None);
        for rows in [1, 2, 3, 4, 5, 6, 7, 9, 64, 65, 66, 131] {
            for first in [0, 150 - rows] {
                let some = linear(cpu, &x[first * cols..], rows, &w, None);
                assert_same_bits(&some, &all[first * outs..][..rows * outs]);
            }
        }
    }
}

#[test]
fn stacked_slices_are_read_in_place() {
    let cpu = Cpu::new();
    let (rows, cols) = (3, 40);
    let x = noise(1, rows * 23);
    // Two bytes of offset misalign `f32`; one byte misaligns everything.
    for (dtype, skip) in [
        (DType::F32, 0),
        (DType::F32, 2),
        (DType::Bf16, 2),
        (DType::Bf16, 1),
        (DType::F16, 0),
    ] {
        let a = stored(dtype, &[10, cols], &noise(2, 10 * cols), skip);
        let b = stored(dtype, &[6, cols / 2, 2], &noise(3, 6 * cols), skip);
        let part = |tensor: &HostTensor, rows| MatrixPart {
            tensor: tensor.clone(),
            rows,
            cols: 11..34,
        };
        let w = cpu
            .matrix(&[part(&a, 2..9), part(&b, 0..6), part(&a, 4..5)])
            .unwrap();
        let (a, b) = (a.to_f32(), b.to_f32());
        let row = |values: &[f32], r: usize| values[r * cols..][11..34].to_vec();
        let flat: Vec<f32> = (2..9)
            .flat_map(|r| row(&a, r))
            .chain((0..6).flat_map(|r| row(&b, r)))
            .chain(row(&a, 4))
            .collect();
        let copy = matrix(cpu, &HostTensor::from_f32("w", &[14, 23], &flat));
        assert_same_bits(
            &linear(cpu, &x, rows, &w, None),
            &linear(cpu, &x, rows, &copy, None),
        );
        let mut out = cpu.buffer(4 * 23).unwrap();
        cpu.embed_ids(&w, &[Some(13), None, Some(0), Some(8)], &mut out)
            .unwrap();
        let out = cpu.download(&out).unwrap();
        assert_same_bits(&out[..23], &flat[13 * 23..]);
        assert_same_bits(&out[23..46], &[0.0; 23]);
        assert_same_bits(&out[46..69], &flat[..23]);
        assert_same_bits(&out[69..], &flat[8 * 23..9 * 23]);
    }
}

#[test]
fn chunks_split_over_ranks_give_the_same_bits() {
    let (outs, cols) = (19, 8 * 37);
    let w = stored(DType::Bf16, &[outs, cols], &noise(2, outs * cols), 0);
    // Chunks of uneven length, one of them empty.
    let ends = [0, 30, 81, 81, 150, 190, 200, 260, cols];
    let chunks: Vec<_> = ends.windows(2).map(|w| w[0]..w[1]).collect();
    for rows in [1, 3, 70] {
        let x = noise(1, rows * cols);
        let whole = everywhere(|cpu| {
            let mut out = cpu.buffer(rows * outs).unwrap();
            let x = cpu.upload(&x).unwrap();
            cpu.linear_chunked(&x, rows, &matrix(cpu, &w), &chunks, &mut out)
                .unwrap();
            cpu.download(&out).unwrap()
        });
        assert_close(&whole, &product64(&x, &w.to_f32(), &[], cols), 1e-6);
        let cpu = Cpu::new();
        for ranks in [1, 2, 4, 8] {
            let parts: Vec<f32> = chunks
                .chunks_exact(8 / ranks)
                .flat_map(|chunks| {
                    let held = chunks[0].start..chunks[chunks.len() - 1].end;
                    let local: Vec<_> = chunks
                        .iter()
                        .map(|c| c.start - held.start..c.end - held.start)
                        .collect();
                    let x: Vec<f32> = x
                        .chunks_exact(cols)
                        .flat_map(|x| &x[held.clone()])
                        .copied()
                        .collect();
                    let part = MatrixPart {
                        tensor: w.clone(),
                        rows: 0..outs,
                        cols: held,
                    };
                    let w = cpu.matrix(&[part]).unwrap();
                    let mut out = cpu.buffer(rows * outs).unwrap();
                    let x = cpu.upload(&x).unwrap();
                    cpu.linear_chunked(&x, rows, &w, &local, &mut out).unwrap();
                    cpu.download(&out).unwrap()
                })
                .collect();
            let mut sum = cpu.buffer(rows * outs).unwrap();
            let parts = cpu.upload(&parts).unwrap();
            cpu.tree_sum(&parts, ranks, rows * outs, &mut sum).unwrap();
            assert_same_bits(&cpu.download(&sum).unwrap(), &whole);
        }
    }
}

#[test]
fn ranks_may_call_at_the_same_time() {
    let (rows, outs, cols) = (20, 300, 500);
    let w = stored(DType::Bf16, &[outs, cols], &noise(2, outs * cols), 0);
    let x = noise(1, rows * cols);
    let cpu = Cpu::new();
    let w = matrix(cpu, &w);
    let want = linear(cpu, &x, rows, &w, None);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert_same_bits(&linear(cpu, &x, rows, &w, None), &want);
                }
            });
        }
    });
}
