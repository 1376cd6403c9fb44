//! Affine norms with their parameters.

use crate::{
    Result,
    checkpoint::Weights,
    ops::{Activation, ImageOps, Norm},
};

/// A layer norm or RMS norm over the channels of each row.
pub struct RowNorm<O: ImageOps> {
    norm: Norm,
    weight: O::Vector,
    bias: Option<O::Vector>,
    width: usize,
    eps: f32,
}

impl<O: ImageOps> RowNorm<O> {
    /// Takes `{name}.weight` `[width]` and, for a layer norm, `{name}.bias` `[width]`.
    ///
    /// # Errors
    /// As [`Weights::tensor`], and what the device says.
    pub fn load(
        ops: &O,
        weights: &mut Weights,
        name: &str,
        norm: Norm,
        width: usize,
        eps: f32,
    ) -> Result<Self> {
        let weight = ops.vector(&[weights.tensor(&format!("{name}.weight"), &[width])?])?;
        let bias = match norm {
            Norm::Layer => Some(ops.vector(&[weights.tensor(&format!("{name}.bias"), &[width])?])?),
            Norm::Rms => None,
        };
        Ok(Self {
            norm,
            weight,
            bias,
            width,
            eps,
        })
    }

    /// `[rows, width]` to a new `[rows, width]`.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, ops: &O, x: &O::Buffer, rows: usize) -> Result<O::Buffer> {
        let mut out = ops.buffer(rows * self.width)?;
        let (weight, bias) = (Some(&self.weight), self.bias.as_ref());
        ops.row_norm(
            self.norm, x, rows, self.width, weight, bias, self.eps, &mut out,
        )?;
        Ok(out)
    }
}

/// A group norm over the positions and grouped channels of a channel-last picture.
pub struct GroupNorm<O: ImageOps> {
    weight: O::Vector,
    bias: O::Vector,
    channels: usize,
    groups: usize,
    eps: f32,
}

impl<O: ImageOps> GroupNorm<O> {
    /// Takes `{name}.weight` and `{name}.bias` `[channels]`; `groups` divides `channels`.
    ///
    /// # Errors
    /// As [`Weights::tensor`], and what the device says.
    pub fn load(
        ops: &O,
        weights: &mut Weights,
        name: &str,
        channels: usize,
        groups: usize,
        eps: f32,
    ) -> Result<Self> {
        let weight = ops.vector(&[weights.tensor(&format!("{name}.weight"), &[channels])?])?;
        let bias = ops.vector(&[weights.tensor(&format!("{name}.bias"), &[channels])?])?;
        Ok(Self {
            weight,
            bias,
            channels,
            groups,
            eps,
        })
    }

    /// `[positions, channels]` to a new `[positions, channels]`, then `act` where given.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(
        &self,
        ops: &O,
        x: &O::Buffer,
        positions: usize,
        act: Option<Activation>,
    ) -> Result<O::Buffer> {
        let mut out = ops.buffer(positions * self.channels)?;
        ops.group_norm(
            x,
            positions,
            self.channels,
            self.groups,
            &self.weight,
            &self.bias,
            self.eps,
            act,
            &mut out,
        )?;
        Ok(out)
    }
}
