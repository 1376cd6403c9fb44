//! Element-by-element operations.

use super::{
    dispatch::{Isa, Kernel},
    lanes::{LANES, Lanes},
    math, threads,
};
use crate::ops::Activation;

/// Values of a task.
const CHUNK: usize = 1 << 13;
/// Multiply-adds that an activation counts for.
const ACTIVATION_WORK: usize = 16;

/// `x = act(x) · times`, without the factor where there is none.
struct Activate<'a> {
    act: Activation,
    x: &'a mut [f32],
    times: Option<&'a [f32]>,
}

impl Kernel for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for at in (0..self.x.len()).step_by(LANES) {
            let mut y = math::activation(self.act, L::read(self.x, at));
            if let Some(times) = self.times {
                y = y.mul(L::read(times, at));
            }
            y.write(self.x, at);
        }
    }
}

/// `x = act(x)`, then `· times` where given.
pub(super) fn activate(isa: Isa, act: Activation, x: &mut [f32], times: Option<&[f32]>) {
    let work = x.len() * ACTIVATION_WORK;
    threads::for_each_chunk(x, CHUNK, work, |i, x| {
        let times = times.map(|times| &times[i * CHUNK..][..x.len()]);
        isa.run(Activate { act, x, times });
    });
}

/// `out[r, i] = silu(gate_up[r, i]) · gate_up[r, width + i]`.
pub(super) fn silu_mul(isa: Isa, gate_up: &[f32], width: usize, out: &mut [f32]) {
    let work = out.len() * ACTIVATION_WORK;
    threads::for_each_chunk(out, width, work, |r, out| {
        let (gate, up) = gate_up[2 * r * width..][..2 * width].split_at(width);
        out.copy_from_slice(gate);
        isa.run(Activate {
            act: Activation::Silu,
            x: out,
            times: Some(up),
        });
    });
}

/// `x += y`.
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    let work = x.len();
    threads::for_each_chunk(x, CHUNK, work, |i, x| {
        for (x, y) in x.iter_mut().zip(&y[i * CHUNK..]) {
            *x += *y;
        }
    });
}

/// `x[r] += y[r]` for the rows of `width` with `update[r]`.
pub(super) fn add_rows(x: &mut [f32], y: &[f32], width: usize, update: Option<&[bool]>) {
    let work = x.len();
    threads::for_each_chunk(x, width, work, |r, x| {
        if update.is_none_or(|update| update[r]) {
            for (x, y) in x.iter_mut().zip(&y[r * width..]) {
                *x += *y;
            }
        }
    });
}

/// `x[r] += gate[r] · y[r]` over rows of `width`, with the gate of each row.
pub(super) fn add_gated<'a>(
    x: &mut [f32],
    y: &[f32],
    width: usize,
    gate: impl Fn(usize) -> &'a [f32] + Sync + Send,
) {
    let work = x.len();
    threads::for_each_chunk(x, width, work, |r, x| {
        for ((x, y), gate) in x.iter_mut().zip(&y[r * width..]).zip(gate(r)) {
            *x += gate * y;
        }
    });
}
