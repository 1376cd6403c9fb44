use super::*;
use crate::ops::{Activation, ConvShape, ImageOps};

#[test]
fn convolutions() {
    for (height, width, channels, kernel, stride, padding, outs) in [
        (5, 7, 3, 3, 1, 1, 4),
        (9, 6, 5, 3, 2, 1, 7),
        (12, 12, 3, 4, 4, 0, 9),
        (15, 11, 20, 1, 1, 0, 13),
    ] {
        let shape = ConvShape {
            height,
            width,
            channels,
            kernel,
            stride,
            padding,
        };
        let x = noise(1, height * width * channels);
        let cols = kernel * kernel * channels;
        let (w, bias) = (noise(2, outs * cols), noise(3, outs));
        let tensor = HostTensor::from_f32("w", &[outs, cols], &w);
        let (out_height, out_width) = shape.output();
        let got = everywhere(|cpu| {
            let mut out = cpu.buffer(out_height * out_width * outs).unwrap();
            let x = cpu.upload(&x).unwrap();
            cpu.conv2d(&x, shape, &matrix(cpu, &tensor), Some(&bias), &mut out)
                .unwrap();
            cpu.download(&out).unwrap()
        });
        let mut want = Vec::new();
        for (row, col) in (0..out_height).flat_map(|r| (0..out_width).map(move |c| (r, c))) {
            for o in 0..outs {
                let mut sum = f64::from(bias[o]);
                for (tap, c) in
                    (0..kernel * kernel).flat_map(|t| (0..channels).map(move |c| (t, c)))
                {
                    let y = (row * stride + tap / kernel).checked_sub(padding);
                    let x_at = (col * stride + tap % kernel).checked_sub(padding);
                    if let (Some(y), Some(x_at)) = (y, x_at)
                        && y < height
                        && x_at < width
                    {
                        sum += f64::from(x[(y * width + x_at) * channels + c])
                            * f64::from(w[o * cols + tap * channels + c]);
                    }
                }
                want.push(sum);
            }
        }
        assert_close(&got, &want, 1e-6);
    }
}

#[test]
fn group_norms() {
    for (positions, channels, groups) in [(1, 8, 2), (300, 12, 4), (513, 40, 8), (200, 6, 6)] {
        let x: Vec<f32> = noise(1, positions * channels)
            .iter()
            .map(|v| v + 4.0)
            .collect();
        let (weight, bias) = (noise(2, channels), noise(3, channels));
        for act in [None, Some(Activation::Silu)] {
            let got = everywhere(|cpu| {
                let mut out = cpu.buffer(x.len()).unwrap();
                let x = cpu.upload(&x).unwrap();
                cpu.group_norm(
                    &x, positions, channels, groups, &weight, &bias, 1e-6, act, &mut out,
                )
                .unwrap();
                cpu.download(&out).unwrap()
            });
            let of_group = channels / groups;
            let mut want = vec![0.0; x.len()];
            for group in 0..groups {
                let cells: Vec<usize> = (0..positions)
                    .flat_map(|p| (0..of_group).map(move |c| p * channels + group * of_group + c))
                    .collect();
                let count = cells.len() as f64;
                let mean = cells.iter().map(|&i| f64::from(x[i])).sum::<f64>() / count;
                let variance = cells
                    .iter()
                    .map(|&i| (f64::from(x[i]) - mean).powi(2))
                    .sum::<f64>()
                    / count;
                for i in cells {
                    let c = i % channels;
                    let y = (f64::from(x[i]) - mean) / (variance + 1e-6).sqrt()
                        * f64::from(weight[c])
                        + f64::from(bias[c]);
                    want[i] = if act.is_some() {
                        y / (1.0 + (-y).exp())
                    } else {
                        y
                    };
                }
            }
            assert_close(&got, &want, 3e-6);
        }
    }
}

#[test]
fn upsampling_doubles_pixels() {
    let (height, width, channels) = (3, 5, 4);
    let x = noise(1, height * width * channels);
    let got = everywhere(|cpu| {
        let mut out = cpu.buffer(4 * x.len()).unwrap();
        cpu.upsample2x(&cpu.upload(&x).unwrap(), height, width, channels, &mut out)
            .unwrap();
        cpu.download(&out).unwrap()
    });
    for (i, pixel) in got.chunks_exact(channels).enumerate() {
        let (row, col) = (i / (2 * width), i % (2 * width));
        let from = (row / 2 * width + col / 2) * channels;
        assert_same_bits(pixel, &x[from..from + channels]);
    }
}
