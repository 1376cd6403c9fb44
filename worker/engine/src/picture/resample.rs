//! Bicubic resampling that reproduces Pillow (up to 12) bit by bit: separable, antialiased,
//! horizontal pass first, 8-bit in between, weights of 22 fractional bits.

use rayon::prelude::*;

use super::Picture;

const PRECISION_BITS: u32 = 22;

/// Resizes each axis on its own; neither side of either size may be zero.
pub fn bicubic(picture: &Picture, width: usize, height: usize) -> Picture {
    let horizontal = (picture.width != width).then(|| resize_rows(picture, width));
    let picture = horizontal.as_ref().unwrap_or(picture);
    if picture.height == height {
        return picture.clone();
    }
    resize_columns(picture, height)
}

fn resize_rows(picture: &Picture, width: usize) -> Picture {
    let taps = Taps::table(picture.width, width);
    let mut rgb = vec![0; picture.height * width * 3];
    let rows = picture.rgb.par_chunks_exact(picture.width * 3);
    rgb.par_chunks_exact_mut(width * 3)
        .zip(rows)
        .for_each(|(out, row)| {
            for (pixel, taps) in out.chunks_exact_mut(3).zip(&taps) {
                let mut sums = [1i32 << (PRECISION_BITS - 1); 3];
                for (source, weight) in row[taps.first * 3..].chunks_exact(3).zip(&taps.weights) {
                    for (sum, value) in sums.iter_mut().zip(source) {
                        *sum += i32::from(*value) * weight;
                    }
                }
                for (value, sum) in pixel.iter_mut().zip(sums) {
                    *value = clamp(sum);
                }
            }
        });
    Picture {
        width,
        height: picture.height,
        rgb,
    }
}

fn resize_columns(picture: &Picture, height: usize) -> Picture {
    let taps = Taps::table(picture.height, height);
    let stride = picture.width * 3;
    let mut rgb = vec![0; height * stride];
    rgb.par_chunks_exact_mut(stride)
        .zip(&taps)
        .for_each(|(out, taps)| {
            let mut sums = vec![1i32 << (PRECISION_BITS - 1); stride];
            let rows = picture.rgb.chunks_exact(stride).skip(taps.first);
            for (row, weight) in rows.zip(&taps.weights) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (value, sum) in out.iter_mut().zip(sums) {
                *value = clamp(sum);
            }
        });
    Picture {
        width: picture.width,
        height,
        rgb,
    }
}

/// The input positions that one output position reads, with fixed-point weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

impl Taps {
    fn table(input: usize, output: usize) -> Vec<Self> {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        (0..output)
            .map(|i| {
                let center = (i as f64 + 0.5) * scale;
                // Float to integer casts truncate and saturate at zero.
                let first = (center - support + 0.5) as usize;
                let last = ((center + support + 0.5) as usize).min(input);
                let weight = |j| cubic((j as f64 - center + 0.5) * (1.0 / filter_scale));
                let weights: Vec<f64> = (first..last).map(weight).collect();
                let total: f64 = weights.iter().sum();
                let weights = weights.iter().map(|w| fixed(w / total)).collect();
                Self { first, weights }
            })
            .collect()
    }
}

/// The Catmull-Rom kernel.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn fixed(weight: f64) -> i32 {
    (weight * f64::from(1 << PRECISION_BITS) + 0.5f64.copysign(weight)) as i32
}

fn clamp(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_flat_picture_stays_flat(
            width in 1usize..40, height in 1usize..40, to_width in 1usize..40,
            to_height in 1usize..40, color: [u8; 3],
        ) {
            let picture = Picture { width, height, rgb: color.repeat(width * height) };
            let resized = bicubic(&picture, to_width, to_height);
            prop_assert_eq!(resized.rgb, color.repeat(to_width * to_height));
        }

        #[test]
        fn mirrored_input_gives_mirrored_output(
            row in prop::collection::vec(any::<u8>(), 1..50), to in 1usize..50,
        ) {
            let line = |values: &mut dyn Iterator<Item = &u8>| {
                let rgb: Vec<u8> = values.flat_map(|v| [*v; 3]).collect();
                bicubic(&Picture { width: row.len(), height: 1, rgb }, to, 1).rgb
            };
            let mut mirrored = line(&mut row.iter().rev());
            mirrored.reverse();
            for (a, b) in line(&mut row.iter()).iter().zip(mirrored) {
                prop_assert!(a.abs_diff(b) <= 1);
            }
        }

        #[test]
        fn weights_stay_within_the_accumulator(input in 1usize..3000, output in 1usize..300) {
            for taps in Taps::table(input, output) {
                let total: i64 = taps.weights.iter().map(|w| i64::from(w.abs())).sum();
                prop_assert!(total * 255 + (1 << 21) < i64::from(i32::MAX));
                prop_assert!(taps.first + taps.weights.len() <= input);
            }
        }
    }
}
