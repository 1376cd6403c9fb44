//! A linear layer on one device.

use crate::{
    Result,
    checkpoint::{HostTensor, Weights},
    ops::{Device, MatrixPart},
};

/// `y = x Wᵀ + b`.
pub struct Dense<O: Device> {
    weight: O::Matrix,
    bias: Option<O::Vector>,
    outputs: usize,
}

impl<O: Device> Dense<O> {
    /// Takes `{name}.weight` `[outputs, inputs]` and `{name}.bias` `[outputs]`.
    ///
    /// # Errors
    /// As [`Weights::tensor`], and what the device says.
    pub fn load(
        ops: &O,
        weights: &mut Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self> {
        let weight = weights.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = weights.tensor(&format!("{name}.bias"), &[outputs])?;
        Self::new(ops, MatrixPart::whole(weight), Some(bias))
    }

    /// Takes `{name}.weight` `[outputs, inputs]` of a layer without bias.
    ///
    /// # Errors
    /// As [`Dense::load`].
    pub fn load_unbiased(
        ops: &O,
        weights: &mut Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self> {
        let weight = weights.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        Self::new(ops, MatrixPart::whole(weight), None)
    }

    /// A layer over a rectangle of a stored weight; `bias` has its number of rows.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(ops: &O, weight: MatrixPart, bias: Option<HostTensor>) -> Result<Self> {
        let outputs = weight.rows.len();
        let bias = bias.map(|bias| ops.vector(&[bias])).transpose()?;
        Ok(Self {
            weight: ops.matrix(&[weight])?,
            bias,
            outputs,
        })
    }

    /// `[rows, inputs]` to a new `[rows, outputs]`.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, ops: &O, x: &O::Buffer, rows: usize) -> Result<O::Buffer> {
        let mut out = ops.buffer(rows * self.outputs)?;
        self.forward_into(ops, x, rows, &mut out)?;
        Ok(out)
    }

    /// `[rows, inputs]` to `[rows, outputs]` of `out`.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward_into(
        &self,
        ops: &O,
        x: &O::Buffer,
        rows: usize,
        out: &mut O::Buffer,
    ) -> Result<()> {
        ops.linear(x, rows, &self.weight, self.bias.as_ref(), out)
    }
}
