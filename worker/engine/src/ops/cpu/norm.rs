//! Normalisation of rows, heads and channel groups.

use super::{
    dispatch::{Isa, Kernel},
    lanes::{LANES, Lanes},
    math, threads,
};
use crate::ops::{Activation, Norm};

/// Positions whose channel sums are added in `f32`, from there on in `f64`.
const POSITION_BLOCK: usize = 128;

/// `· (base + weight) + bias`, each where given.
#[derive(Clone, Copy, Default)]
pub(super) struct Affine<'a> {
    pub weight: Option<&'a [f32]>,
    /// Added to the weight: 1 for adaptive norms.
    pub base: f32,
    pub bias: Option<&'a [f32]>,
}

/// One row: the statistic in lanes over the channels, then the affine map.
struct NormRow<'a> {
    norm: Norm,
    x: &'a [f32],
    affine: Affine<'a>,
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self {
            norm,
            x,
            affine,
            eps,
            out,
        } = self;
        let width = x.len();
        let mut mean = 0.0;
        if norm == Norm::Layer {
            let mut sum = L::splat(0.0);
            for at in (0..width).step_by(LANES) {
                sum = sum.add(L::read(x, at));
            }
            mean = sum.sum() / width as f32;
        }
        let mut squares = L::splat(0.0);
        for at in (0..width).step_by(LANES) {
            let x = L::read_or(x, at, mean).sub(L::splat(mean));
            squares = x.mul_add(x, squares);
        }
        let scale = L::splat(1.0 / (squares.sum() / width as f32 + eps).sqrt());
        for at in (0..width).step_by(LANES) {
            let mut y = L::read(x, at).sub(L::splat(mean)).mul(scale);
            if let Some(weight) = affine.weight {
                y = y.mul(L::read(weight, at).add(L::splat(affine.base)));
            }
            if let Some(bias) = affine.bias {
                y = y.add(L::read(bias, at));
            }
            y.write(out, at);
        }
    }
}

/// Normalises each row of `width` with the affine map of its row.
pub(super) fn rows<'a>(
    isa: Isa,
    norm: Norm,
    x: &[f32],
    width: usize,
    affine: impl Fn(usize) -> Affine<'a> + Sync + Send,
    eps: f32,
    out: &mut [f32],
) {
    let work = 4 * out.len();
    threads::for_each_chunk(out, width, work, |r, out| {
        let x = &x[r * width..][..width];
        isa.run(NormRow {
            norm,
            x,
            affine: affine(r),
            eps,
            out,
        });
    });
}

/// RMS-normalises the heads of rows in place, then rotates adjacent pairs by `(cos, sin)` rows of
/// the position `row % len`.
pub(super) fn heads(
    isa: Isa,
    x: &mut [f32],
    width: usize,
    weight: &[f32],
    eps: f32,
    rope: Option<(&[f32], &[f32])>,
    len: usize,
) {
    let dim = weight.len();
    let work = 8 * x.len();
    threads::for_each_chunk(x, width, work, |r, row| {
        let before = row.to_vec();
        for (x, out) in before.chunks_exact(dim).zip(row.chunks_exact_mut(dim)) {
            let affine = Affine {
                weight: Some(weight),
                ..Affine::default()
            };
            isa.run(NormRow {
                norm: Norm::Rms,
                x,
                affine,
                eps,
                out,
            });
            if let Some((cos, sin)) = rope {
                let angles = (r % len) * (dim / 2)..(r % len + 1) * (dim / 2);
                let angles = cos[angles.clone()].iter().zip(&sin[angles]);
                for (pair, (cos, sin)) in out.chunks_exact_mut(2).zip(angles) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * cos - b * sin;
                    pair[1] = a * sin + b * cos;
                }
            }
        }
    });
}

/// Sizes and parameters of a group norm.
pub(super) struct GroupNorm<'a> {
    pub channels: usize,
    pub groups: usize,
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f32,
    pub act: Option<Activation>,
}

impl GroupNorm<'_> {
    /// Normalises `x` `[positions, channels]` into `out`.
    pub(super) fn run(&self, isa: Isa, x: &[f32], out: &mut [f32]) {
        let channels = self.channels;
        let mean = self.group_means(isa, x, None);
        let variance = self.group_means(isa, x, Some(&mean));
        let scale: Vec<f32> = variance
            .iter()
            .zip(self.weight)
            .map(|(variance, weight)| weight / (variance + self.eps).sqrt())
            .collect();
        let len = POSITION_BLOCK * channels;
        let work = 8 * out.len();
        threads::for_each_chunk(out, len, work, |i, out| {
            let (mean, scale, bias, act) = (&mean, &scale, self.bias, self.act);
            let rows = x[i * len..]
                .chunks_exact(channels)
                .zip(out.chunks_exact_mut(channels));
            for (x, out) in rows {
                isa.run(ShiftScale {
                    x,
                    mean,
                    scale,
                    bias,
                    act,
                    out,
                });
            }
        });
    }

    /// For each channel the mean over its group of `x`, or of `(x - centre)²`.
    fn group_means(&self, isa: Isa, x: &[f32], centre: Option<&[f32]>) -> Vec<f32> {
        let channels = self.channels;
        let len = POSITION_BLOCK * channels;
        let mut partial = vec![0.0; x.len().div_ceil(len.max(1)) * channels];
        threads::for_each_chunk(&mut partial, channels, 2 * x.len(), |i, sums| {
            let x = &x[i * len..x.len().min((i + 1) * len)];
            isa.run(ChannelSums { x, centre, sums });
        });
        let of_group = channels / self.groups;
        let count = (x.len() / self.groups) as f64;
        let mut sums = vec![0.0_f64; self.groups];
        for block in partial.chunks_exact(channels) {
            for (sum, group) in sums.iter_mut().zip(block.chunks_exact(of_group)) {
                *sum += group.iter().map(|&v| f64::from(v)).sum::<f64>();
            }
        }
        (0..channels)
            .map(|c| (sums[c / of_group] / count) as f32)
            .collect()
    }
}

/// For each channel the sum over positions of `x`, or of `(x - centre)²`.
struct ChannelSums<'a> {
    x: &'a [f32],
    centre: Option<&'a [f32]>,
    sums: &'a mut [f32],
}

impl Kernel for ChannelSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let channels = self.sums.len();
        for at in (0..channels).step_by(LANES) {
            let mut sum = L::splat(0.0);
            for x in self.x.chunks_exact(channels) {
                let x = L::read(x, at);
                sum = match self.centre {
                    None => sum.add(x),
                    Some(centre) => {
                        let x = x.sub(L::read(centre, at));
                        x.mul_add(x, sum)
                    }
                };
            }
            sum.write(self.sums, at);
        }
    }
}

/// `out = act((x - mean) · scale + bias)` for one position.
struct ShiftScale<'a> {
    x: &'a [f32],
    mean: &'a [f32],
    scale: &'a [f32],
    bias: &'a [f32],
    act: Option<Activation>,
    out: &'a mut [f32],
}

impl Kernel for ShiftScale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for at in (0..self.x.len()).step_by(LANES) {
            let x = L::read(self.x, at).sub(L::read(self.mean, at));
            let mut y = x.mul_add(L::read(self.scale, at), L::read(self.bias, at));
            if let Some(act) = self.act {
                y = math::activation(act, y);
            }
            y.write(self.out, at);
        }
    }
}
