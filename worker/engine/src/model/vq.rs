//! The vector quantiser of the image tokenizer: features to codes, codes to decoder conditioning.

use crate::{
    Error, Result,
    checkpoint::{Weights, config::EncoderConfig},
    model::{conv::Conv, dense::Dense, embedding::Embedding, norm::GroupNorm},
    ops::{Activation, ImageOps, MatrixPart},
    text::grid::Grid,
};

/// Features compared with the codebook at a time.
const COMPARED_ROWS: usize = 256;

const NORM_FLOOR: f32 = 1e-12;
const GROUPS: usize = 32;
const GROUP_NORM_EPS: f32 = 1e-5;

/// ViT features to codes.
pub struct VqEncoder<O: ImageOps> {
    codebook_dim: usize,
    quant_conv: Dense<O>,
    codebook: Dense<O>,
    inverse_norms: Vec<f32>,
}

impl<O: ImageOps> VqEncoder<O> {
    /// Takes the encoding half of a projector's state dict.
    ///
    /// # Errors
    /// As [`Weights::tensor`], and what the device says.
    pub fn load(ops: &O, mut weights: Weights, config: &EncoderConfig) -> Result<Self> {
        let (width, dim) = (config.z_channels, config.codebook_dim);
        let quant = weights.tensor("quant_conv.weight", &[dim, width, 1, 1])?;
        let quant_bias = weights.tensor("quant_conv.bias", &[dim])?;
        let codebook = weights.tensor("quantize.embedding.weight", &[config.codebook_size, dim])?;
        weights.finish(|name| {
            name.starts_with("post_quant_conv.") || name.starts_with("post_conv.")
        })?;
        let rows = Embedding::new(codebook.clone());
        let norm = |i: usize| rows.row(i).map(|v| v * v).sum::<f32>().sqrt();
        Ok(Self {
            codebook_dim: dim,
            quant_conv: Dense::new(ops, MatrixPart::whole(quant), Some(quant_bias))?,
            codebook: Dense::new(ops, MatrixPart::whole(codebook), None)?,
            inverse_norms: (0..rows.rows())
                .map(|i| 1.0 / norm(i).max(NORM_FLOOR))
                .collect(),
        })
    }

    /// Features `[n, z_channels]` to the vectors `[n, codebook_dim]` that are compared with codes.
    ///
    /// # Errors
    /// What the device says.
    pub fn project(&self, ops: &O, features: &O::Buffer, n: usize) -> Result<O::Buffer> {
        self.quant_conv.forward(ops, features, n)
    }

    /// For each of `n` projected vectors the code of largest cosine; the lowest on a tie.
    ///
    /// # Errors
    /// What the device says.
    pub fn nearest(&self, ops: &O, projected: &O::Buffer, n: usize) -> Result<Vec<u32>> {
        let mut codes = Vec::with_capacity(n);
        for start in (0..n).step_by(COMPARED_ROWS) {
            let rows = COMPARED_ROWS.min(n - start);
            let mut part = ops.buffer(rows * self.codebook_dim)?;
            ops.copy_rows(projected, start, &mut part, 0, rows, self.codebook_dim)?;
            let products = self.codebook.forward(ops, &part, rows)?; // [rows, codes]
            let products = ops.download(&products)?;
            codes.extend(
                products
                    .chunks_exact(self.inverse_norms.len())
                    .map(|products| {
                        // The vector's own norm scales all its cosines alike.
                        first_largest(
                            products
                                .iter()
                                .zip(&self.inverse_norms)
                                .map(|(p, inv)| p * inv),
                        )
                    }),
            );
        }
        Ok(codes)
    }
}

fn first_largest(values: impl Iterator<Item = f32>) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, value) in (0..).zip(values) {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// Codes to the sequence that conditions the diffusion transformer.
pub struct VqDecoder<O: ImageOps> {
    codebook: Embedding,
    post_quant_conv: Conv<O>,
    blocks: [Residual<O>; 2],
}

struct Residual<O: ImageOps> {
    norm1: GroupNorm<O>,
    conv1: Conv<O>,
    norm2: GroupNorm<O>,
    conv2: Conv<O>,
}

impl<O: ImageOps> VqDecoder<O> {
    /// Takes the decoding half of a projector's state dict.
    ///
    /// # Errors
    /// As [`Weights::tensor`], and what the device says; [`Error::Unsupported`] if 32 groups do not
    /// divide the channels.
    pub fn load(ops: &O, mut weights: Weights, config: &EncoderConfig) -> Result<Self> {
        let (width, dim) = (config.z_channels, config.codebook_dim);
        if !width.is_multiple_of(GROUPS) {
            let reason = format!("not divisible by {GROUPS} groups");
            return Err(Error::Unsupported {
                what: format!("z_channels {width}"),
                reason,
            });
        }
        let w = &mut weights;
        let codebook = w.tensor("quantize.embedding.weight", &[config.codebook_size, dim])?;
        let post_quant_conv = Conv::load(ops, w, "post_quant_conv", dim, width, 1)?;
        let blocks = [
            Residual::load(ops, w, 0, width)?,
            Residual::load(ops, w, 1, width)?,
        ];
        weights.finish(|name| name.starts_with("quant_conv."))?;
        Ok(Self {
            codebook: Embedding::new(codebook),
            post_quant_conv,
            blocks,
        })
    }

    /// Number of codes.
    pub fn codes(&self) -> usize {
        self.codebook.rows()
    }

    /// Codes of a grid to `[H·W, z_channels]`.
    ///
    /// # Errors
    /// As [`VqDecoder::rows`], and what the device says.
    pub fn forward(&self, ops: &O, codes: &[u32], grid: Grid) -> Result<O::Buffer> {
        let mut x = self.post_quant_conv(ops, &self.rows(codes)?, grid)?; // [H·W, z_channels]
        for index in 0..self.blocks.len() {
            self.residual(ops, index, &mut x, grid)?;
        }
        Ok(x)
    }

    /// The stored codebook rows `[codes, codebook_dim]`, not normalised.
    ///
    /// # Errors
    /// [`Error::BadInput`] if a code is outside the codebook.
    pub fn rows(&self, codes: &[u32]) -> Result<Vec<f32>> {
        self.codebook.gather("tokens", codes)
    }

    /// Codebook rows to `[H·W, z_channels]`.
    ///
    /// # Errors
    /// What the device says.
    pub fn post_quant_conv(&self, ops: &O, rows: &[f32], grid: Grid) -> Result<O::Buffer> {
        let (height, width) = (grid.height as usize, grid.width as usize);
        self.post_quant_conv
            .forward(ops, &ops.upload(rows)?, height, width)
    }

    /// Runs residual block `index` (of two) on `x` `[H·W, z_channels]`.
    ///
    /// # Errors
    /// What the device says.
    pub fn residual(&self, ops: &O, index: usize, x: &mut O::Buffer, grid: Grid) -> Result<()> {
        let (block, act) = (&self.blocks[index], Some(Activation::GeluErf));
        let (height, width) = (grid.height as usize, grid.width as usize);
        let y = block.norm1.forward(ops, x, height * width, act)?;
        let y = block.conv1.forward(ops, &y, height, width)?;
        let y = block.norm2.forward(ops, &y, height * width, act)?;
        let y = block.conv2.forward(ops, &y, height, width)?;
        ops.add(x, &y)
    }
}

impl<O: ImageOps> Residual<O> {
    fn load(ops: &O, w: &mut Weights, index: usize, width: usize) -> Result<Self> {
        let name = |part: &str| format!("post_conv.{index}.{part}");
        Ok(Self {
            norm1: GroupNorm::load(ops, w, &name("norm1"), width, GROUPS, GROUP_NORM_EPS)?,
            conv1: Conv::load(ops, w, &name("conv1"), width, width, 3)?,
            norm2: GroupNorm::load(ops, w, &name("norm2"), width, GROUPS, GROUP_NORM_EPS)?,
            conv2: Conv::load(ops, w, &name("conv2"), width, width, 3)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_code() {
        assert_eq!(first_largest([1.0, 3.0, 3.0, 2.0].into_iter()), 1);
        assert_eq!(first_largest([-3.0].into_iter()), 0);
    }
}
