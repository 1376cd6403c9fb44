//! What is embedded: time and pooled text as a vector, positions as rotations.

use crate::{
    Result,
    checkpoint::Weights,
    model::dense::Dense,
    ops::{Activation, ImageOps},
    text::grid::Grid,
};

/// Channels of the sinusoid of a scalar.
pub const TIME_CHANNELS: usize = 256;

const BASE: f64 = 10_000.0;

/// `linear_2(silu(linear_1(x)))`.
pub struct Mlp<O: ImageOps> {
    linear_1: Dense<O>,
    linear_2: Dense<O>,
}

impl<O: ImageOps> Mlp<O> {
    pub fn load(ops: &O, w: &mut Weights, name: &str, inputs: usize, width: usize) -> Result<Self> {
        Ok(Self {
            linear_1: Dense::load(ops, w, &format!("{name}.linear_1"), inputs, width)?,
            linear_2: Dense::load(ops, w, &format!("{name}.linear_2"), width, width)?,
        })
    }

    pub fn forward(&self, ops: &O, x: &O::Buffer, rows: usize) -> Result<O::Buffer> {
        let mut hidden = self.linear_1.forward(ops, x, rows)?;
        ops.activate(&mut hidden, Activation::Silu)?;
        self.linear_2.forward(ops, &hidden, rows)
    }
}

/// Cosines, then sines, of `value` at 128 frequencies, in `f32` throughout (diffusers
/// `get_timestep_embedding`).
pub fn sinusoid(value: f32) -> Vec<f32> {
    const HALF: usize = TIME_CHANNELS / 2;
    let log_base = libm::log(BASE) as f32;
    let angles = (0..HALF).map(|j| value * libm::expf(-log_base * j as f32 / HALF as f32));
    let angles: Vec<f32> = angles.collect();
    let cos = angles.iter().map(|a| libm::cosf(*a));
    cos.chain(angles.iter().map(|a| libm::sinf(*a))).collect()
}

/// Cosines and sines `[text + H·W, head_dim / 2]` of every position: texts stand at the origin,
/// patches at (0, row, column).
pub fn rope_tables(axes: [usize; 3], text: usize, grid: Grid) -> (Vec<f32>, Vec<f32>) {
    let origins = std::iter::repeat_n([0, 0, 0], text);
    let patches = (0..grid.height).flat_map(|y| (0..grid.width).map(move |x| [0, y, x]));
    let mut tables = (Vec::new(), Vec::new());
    for ids in origins.chain(patches) {
        for (id, dim) in ids.into_iter().zip(axes) {
            for j in 0..dim / 2 {
                let angle = f64::from(id) / libm::pow(BASE, 2.0 * j as f64 / dim as f64);
                tables.0.push(libm::cos(angle) as f32);
                tables.1.push(libm::sin(angle) as f32);
            }
        }
    }
    tables
}
