//! A convolution that keeps the size of its picture.

use std::sync::Arc;

use crate::{
    Result,
    checkpoint::{HostTensor, Weights, tensor::TensorBytes},
    ops::{ConvShape, ImageOps, MatrixPart},
};

/// A square convolution of stride 1 over a channel-last picture, zero-padded to keep its size.
pub struct Conv<O: ImageOps> {
    weight: O::Matrix,
    bias: O::Vector,
    inputs: usize,
    outputs: usize,
    kernel: usize,
}

impl<O: ImageOps> Conv<O> {
    /// Takes `{name}.weight` `[outputs, inputs, kernel, kernel]` and `{name}.bias` `[outputs]`;
    /// `kernel` is odd.
    ///
    /// # Errors
    /// As [`Weights::tensor`], and what the device says.
    pub fn load(
        ops: &O,
        weights: &mut Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
        kernel: usize,
    ) -> Result<Self> {
        let shape = [outputs, inputs, kernel, kernel];
        let weight = weights.tensor(&format!("{name}.weight"), &shape)?;
        let bias = weights.tensor(&format!("{name}.bias"), &[outputs])?;
        let weight = if kernel == 1 {
            weight
        } else {
            channels_last(&weight)
        };
        Ok(Self {
            weight: ops.matrix(&[MatrixPart::whole(weight)])?,
            bias: ops.vector(&[bias])?,
            inputs,
            outputs,
            kernel,
        })
    }

    /// `[height·width, inputs]` to a new `[height·width, outputs]`.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(
        &self,
        ops: &O,
        x: &O::Buffer,
        height: usize,
        width: usize,
    ) -> Result<O::Buffer> {
        let mut out = ops.buffer(height * width * self.outputs)?;
        if self.kernel == 1 {
            ops.linear(x, height * width, &self.weight, Some(&self.bias), &mut out)?;
            return Ok(out);
        }
        let shape = ConvShape {
            height,
            width,
            channels: self.inputs,
            kernel: self.kernel,
            stride: 1,
            padding: self.kernel / 2,
        };
        ops.conv2d(x, shape, &self.weight, Some(&self.bias), &mut out)?;
        Ok(out)
    }
}

/// `[out, in, k, k]` as `[out, k, k, in]`, in its stored type.
fn channels_last(weight: &HostTensor) -> HostTensor {
    let &[outputs, inputs, rows, columns] = weight.shape() else {
        return weight.clone();
    };
    let (size, area) = (weight.dtype().size(), rows * columns);
    let mut bytes = Vec::with_capacity(weight.bytes().len().next_multiple_of(4));
    for filter in weight
        .bytes()
        .chunks_exact(inputs * area * size)
        .take(outputs)
    {
        for at in 0..area {
            for channel in filter.chunks_exact(area * size) {
                bytes.extend_from_slice(&channel[at * size..(at + 1) * size]);
            }
        }
    }
    let len = bytes.len();
    bytes.resize(len.next_multiple_of(4), 0);
    let words = bytes
        .chunks_exact(4)
        .map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    HostTensor::new(
        weight.name(),
        &weight.file().into(),
        weight.dtype(),
        &[outputs, rows, columns, inputs],
        TensorBytes::Owned(Arc::new(words.collect()), len),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_rearranged_in_their_stored_type() {
        let values: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let moved = channels_last(&HostTensor::from_f32("w", &[1, 3, 2, 2], &values));
        assert_eq!(moved.shape(), [1, 2, 2, 3]);
        let expected = [0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.];
        assert_eq!(moved.to_f32(), expected);
    }
}
