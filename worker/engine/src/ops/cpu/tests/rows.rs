use super::*;
use crate::ops::{Activation, ImageOps, Norm, Residual, RmsNorm};

fn norm64(norm: Norm, x: &[f32], eps: f64) -> Vec<f64> {
    let x = widen(x);
    let count = x.len() as f64;
    let mean = if norm == Norm::Layer {
        x.iter().sum::<f64>() / count
    } else {
        0.0
    };
    let square = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
    x.iter()
        .map(|v| (v - mean) / (square + eps).sqrt())
        .collect()
}

#[test]
fn row_norms() {
    for (rows, width) in [(1, 1), (3, 16), (5, 77), (40, 1000)] {
        let x: Vec<f32> = noise(1, rows * width)
            .iter()
            .map(|v| v * 3.0 + 5.0)
            .collect();
        let (weight, bias) = (noise(2, width), noise(3, width));
        for norm in [Norm::Layer, Norm::Rms] {
            let got = everywhere(|cpu| {
                let mut out = cpu.buffer(x.len()).unwrap();
                let x = cpu.upload(&x).unwrap();
                cpu.row_norm(
                    norm,
                    &x,
                    rows,
                    width,
                    Some(&weight),
                    Some(&bias),
                    1e-6,
                    &mut out,
                )
                .unwrap();
                cpu.download(&out).unwrap()
            });
            let want: Vec<f64> = x
                .chunks_exact(width)
                .flat_map(|x| {
                    let normal = norm64(norm, x, 1e-6);
                    let affine = normal.into_iter().zip(widen(&weight)).zip(widen(&bias));
                    affine.map(|((x, w), b)| x * w + b).collect::<Vec<_>>()
                })
                .collect();
            assert_close(&got, &want, 1e-5);
        }
    }
}

#[test]
fn norms_of_the_backbone() {
    let (rows, width) = (5, 50);
    let (x, delta) = (noise(1, rows * width), noise(2, rows * width));
    let (a, b) = (noise(3, width), noise(4, width));
    let select = [true, false, false, true, true];
    let batch = Rows::of(RowBatch {
        tokens: vec![0; rows],
        multimodal: select.to_vec(),
        ..RowBatch::default()
    });
    let got = everywhere(|cpu| {
        let mut out = cpu.buffer(rows * width).unwrap();
        let mut h = cpu.upload(&x).unwrap();
        let mut delta = cpu.upload(&delta).unwrap();
        let to = Residual {
            h: &mut h,
            rows: &batch,
            width,
            multimodal_only: true,
            norm: Some(RmsNorm {
                weight: &a,
                eps: 1e-6,
                out: &mut out,
            }),
        };
        cpu.residual(Some(&mut delta), to).unwrap();
        let mut all = cpu.download(&out).unwrap();
        cpu.rms_norm_select(&h, (&a, &b), &select, 1e-6, &mut out)
            .unwrap();
        all.extend(cpu.download(&out).unwrap());
        let to = Residual {
            h: &mut h,
            rows: &batch,
            width,
            multimodal_only: false,
            norm: None,
        };
        cpu.residual(Some(&mut delta), to).unwrap();
        all.extend(cpu.download(&h).unwrap());
        all
    });
    let mut h = widen(&x);
    for (r, row) in h
        .chunks_exact_mut(width)
        .enumerate()
        .filter(|(r, _)| select[*r])
    {
        for (c, h) in row.iter_mut().enumerate() {
            *h += f64::from(delta[r * width + c]);
        }
    }
    let mut want = Vec::new();
    for by_row in [false, true] {
        for (r, row) in h.chunks_exact(width).enumerate() {
            let square = row.iter().map(|v| v * v).sum::<f64>() / width as f64;
            let weight = if by_row && select[r] { &b } else { &a };
            let scale = 1.0 / (square + 1e-6).sqrt();
            want.extend(
                row.iter()
                    .zip(weight)
                    .map(|(h, &w)| h * scale * f64::from(w)),
            );
        }
    }
    want.extend(h.iter().zip(&delta).map(|(h, &d)| h + f64::from(d)));
    assert_close(&got, &want, 1e-6);
}

#[test]
fn adaptive_norm_and_gate() {
    let (batch, run, width) = (2, 3, 21);
    let rows = batch * run;
    let (x, y) = (noise(1, rows * width), noise(2, rows * width));
    let modulation = noise(3, batch * 4 * width);
    let got = everywhere(|cpu| {
        let mut out = cpu.buffer(rows * width).unwrap();
        let mut x = cpu.upload(&x).unwrap();
        let y = cpu.upload(&y).unwrap();
        let m = cpu.upload(&modulation).unwrap();
        cpu.adaptive_norm(&x, rows, width, &m, batch, width, 2 * width, 1e-6, &mut out)
            .unwrap();
        let mut all = cpu.download(&out).unwrap();
        cpu.gated_add(&mut x, &y, rows, width, &m, batch, 3 * width)
            .unwrap();
        all.extend(cpu.download(&x).unwrap());
        all
    });
    let at = |r: usize, part: usize, c: usize| {
        f64::from(modulation[r / run * 4 * width + part * width + c])
    };
    let mut want = Vec::new();
    for (r, x) in x.chunks_exact(width).enumerate() {
        let normal = norm64(Norm::Layer, x, 1e-6);
        want.extend(
            normal
                .iter()
                .enumerate()
                .map(|(c, n)| n * (1.0 + at(r, 2, c)) + at(r, 1, c)),
        );
    }
    for (i, (&x, &y)) in x.iter().zip(&y).enumerate() {
        want.push(f64::from(x) + at(i / width, 3, i % width) * f64::from(y));
    }
    assert_close(&got, &want, 1e-6);
}

#[test]
fn head_norm_and_rope() {
    let shape = crate::ops::AttentionShape {
        batch: 2,
        len: 5,
        heads: 3,
        head_dim: 10,
    };
    let width = shape.heads * shape.head_dim;
    let x = noise(1, shape.batch * shape.len * width);
    let weight = noise(2, shape.head_dim);
    let (cos, sin) = (noise(3, shape.len * 5), noise(4, shape.len * 5));
    let got = everywhere(|cpu| {
        let (mut x, cos, sin) = (
            cpu.upload(&x).unwrap(),
            cpu.upload(&cos).unwrap(),
            cpu.upload(&sin).unwrap(),
        );
        cpu.head_norm_rope(&mut x, shape, &weight, 1e-6, Some((&cos, &sin)))
            .unwrap();
        cpu.download(&x).unwrap()
    });
    let mut want = Vec::new();
    for (head, x) in x.chunks_exact(shape.head_dim).enumerate() {
        let position = head / shape.heads % shape.len;
        let normal = norm64(Norm::Rms, x, 1e-6);
        let x: Vec<f64> = normal
            .iter()
            .zip(&weight)
            .map(|(x, &w)| x * f64::from(w))
            .collect();
        for (j, pair) in x.chunks_exact(2).enumerate() {
            let (c, s) = (
                f64::from(cos[position * 5 + j]),
                f64::from(sin[position * 5 + j]),
            );
            want.extend([pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c]);
        }
    }
    assert_close(&got, &want, 1e-6);
}

#[test]
fn activations() {
    let (rows, width) = (3, 3001);
    let gate: Vec<f32> = noise(1, 2 * rows * width).iter().map(|v| v * 6.0).collect();
    let half = &gate[..rows * width];
    let up = noise(2, rows * width);
    // The error function through its Maclaurin series, good enough to |x| = 4.5.
    let erf = |x: f64| {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    };
    let exact = |act: Activation, x: f64| match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / 2.0_f64.sqrt())),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    };
    for act in [
        Activation::Silu,
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::QuickGelu,
    ] {
        let got = everywhere(|cpu| {
            let (mut a, mut b) = (cpu.upload(half).unwrap(), cpu.upload(half).unwrap());
            cpu.activate(&mut a, act).unwrap();
            cpu.activate_mul(&mut b, &cpu.upload(&up).unwrap(), act)
                .unwrap();
            cpu.add(&mut a, &b).unwrap();
            cpu.download(&a).unwrap()
        });
        let want: Vec<f64> = widen(half)
            .into_iter()
            .zip(widen(&up))
            .map(|(x, up)| exact(act, x) * (1.0 + up))
            .collect();
        assert_close(&got, &want, 5e-7);
    }
    let got = everywhere(|cpu| {
        let mut out = cpu.buffer(rows * width).unwrap();
        cpu.silu_mul(&cpu.upload(&gate).unwrap(), rows, width, &mut out)
            .unwrap();
        cpu.download(&out).unwrap()
    });
    let want: Vec<f64> = (0..rows * width)
        .map(|i| {
            let at = i / width * 2 * width + i % width;
            exact(Activation::Silu, f64::from(gate[at])) * f64::from(gate[at + width])
        })
        .collect();
    assert_close(&got, &want, 5e-7);
}

#[test]
fn rows_are_copied() {
    let cpu = Cpu::new();
    let src = cpu.upload(&noise(1, 12)).unwrap();
    let mut dst = cpu.buffer(9).unwrap();
    cpu.copy_rows(&src, 1, &mut dst, 1, 2, 3).unwrap();
    let dst_values = cpu.download(&dst).unwrap();
    assert_same_bits(&dst_values[..3], &[0.0; 3]);
    assert_same_bits(&dst_values[3..], &noise(1, 12)[3..9]);
    assert!(cpu.copy_rows(&src, 3, &mut dst, 0, 2, 3).is_err());
    assert!(cpu.copy_rows(&src, 0, &mut dst, 2, 2, 3).is_err());
}
