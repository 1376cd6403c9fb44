//! The SigLIP 2 vision transformer, as the image tokenizer uses it: no final norm, no pooling
//! (timm `VisionTransformer` with a resampled position table).

use crate::{
    Error, Result,
    checkpoint::{HostTensor, Weights, config::EncoderConfig},
    model::{dense::Dense, embedding::Embedding, norm::RowNorm},
    ops::{Activation, AttentionShape, ImageOps, MatrixPart, Norm},
    picture::preprocess::Pixels,
    text::grid::Grid,
};

/// Side of a patch, in pixels.
pub const PATCH: usize = 16;

/// Side of the stored position table, in patches.
const TABLE_SIDE: usize = 128;

const EPS: f32 = 1e-6;

/// The vision transformer.
pub struct Siglip<O: ImageOps> {
    width: usize,
    heads: usize,
    patch_embed: Dense<O>,
    pos_embed: Embedding,
    blocks: Vec<Block<O>>,
}

struct Block<O: ImageOps> {
    norm1: RowNorm<O>,
    query: Dense<O>,
    key: Dense<O>,
    value: Dense<O>,
    proj: Dense<O>,
    norm2: RowNorm<O>,
    fc1: Dense<O>,
    fc2: Dense<O>,
}

impl<O: ImageOps> Siglip<O> {
    /// Takes what it needs of a state dict and ignores the rest (final norm, pooling head). Depth
    /// and MLP width are those of the tensors; for random weights those of the published models.
    ///
    /// # Errors
    /// As [`Weights::tensor`], and what the device says; [`Error::Unsupported`] if the heads do not
    /// divide the width.
    pub fn load(ops: &O, mut weights: Weights, config: &EncoderConfig) -> Result<Self> {
        let (width, heads) = (config.z_channels, config.heads);
        if heads == 0 || !width.is_multiple_of(heads) {
            let reason = format!("not divisible by {heads} heads");
            return Err(Error::Unsupported {
                what: format!("ViT width {width}"),
                reason,
            });
        }
        let (depth, mlp) = sizes(&weights, width);
        let w = &mut weights;
        let patch = w.tensor("patch_embed.proj.weight", &[width, 3, PATCH, PATCH])?;
        let patch_bias = w.tensor("patch_embed.proj.bias", &[width])?;
        let pos_embed = w.tensor("pos_embed", &[1, TABLE_SIDE * TABLE_SIDE, width])?;
        let blocks = (0..depth)
            .map(|i| Block::load(ops, w, i, width, mlp))
            .collect::<Result<_>>()?;
        weights.finish(|_| true)?;
        Ok(Self {
            width,
            heads,
            patch_embed: Dense::new(ops, MatrixPart::whole(patch), Some(patch_bias))?,
            pos_embed: Embedding::new(pos_embed),
            blocks,
        })
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// The features `[H·W, width]` of a picture of `16 H` x `16 W` pixels: the output of the last
    /// block.
    ///
    /// # Errors
    /// What the device says.
    pub fn forward(&self, ops: &O, pixels: &Pixels) -> Result<O::Buffer> {
        let grid = grid_of(pixels);
        let mut x = self.patch_embed(ops, pixels)?; // [H·W, width]
        ops.add(&mut x, &ops.upload(&self.position_table(grid))?)?;
        for index in 0..self.depth() {
            self.block(ops, index, &mut x, grid.tokens())?;
        }
        Ok(x)
    }

    /// The patches of a picture, `[H·W, width]`, before positions are added.
    ///
    /// # Errors
    /// What the device says.
    pub fn patch_embed(&self, ops: &O, pixels: &Pixels) -> Result<O::Buffer> {
        // [3, 16 H, 16 W] to [H·W, 3·16·16]
        let patches = ops.upload(&unfold(pixels))?;
        self.patch_embed
            .forward(ops, &patches, grid_of(pixels).tokens())
    }

    /// The position table `[H·W, width]`, resampled bilinearly with half-pixel centres and without
    /// antialiasing.
    pub fn position_table(&self, grid: Grid) -> Vec<f32> {
        let (height, width) = (grid.height as usize, grid.width as usize);
        let rows: Vec<Tap> = (0..height).map(|i| Tap::new(i, height)).collect();
        let columns: Vec<Tap> = (0..width).map(|i| Tap::new(i, width)).collect();
        let mut table = Vec::with_capacity(grid.tokens() * self.width);
        for y in &rows {
            for x in &columns {
                let at = |row: usize, column: usize| self.pos_embed.row(row * TABLE_SIDE + column);
                let upper = at(y.low, x.low).zip(at(y.low, x.high));
                let lower = at(y.high, x.low).zip(at(y.high, x.high));
                table.extend(
                    upper
                        .zip(lower)
                        .map(|((ul, ur), (ll, lr))| y.mix(x.mix(ul, ur), x.mix(ll, lr))),
                );
            }
        }
        table
    }

    /// Runs block `index` on `x` `[len, width]`.
    ///
    /// # Errors
    /// What the device says.
    pub fn block(&self, ops: &O, index: usize, x: &mut O::Buffer, len: usize) -> Result<()> {
        let block = &self.blocks[index];
        let head_dim = self.width / self.heads;
        let shape = AttentionShape {
            batch: 1,
            len,
            heads: self.heads,
            head_dim,
        };

        let y = block.norm1.forward(ops, x, len)?;
        let q = block.query.forward(ops, &y, len)?; // [len, heads·head_dim], as are k and v
        let k = block.key.forward(ops, &y, len)?;
        let v = block.value.forward(ops, &y, len)?;
        let mut attended = y;
        let scale = libm::powf(head_dim as f32, -0.5);
        ops.dense_attention(&q, &k, &v, shape, scale, None, false, &mut attended)?;
        ops.add(x, &block.proj.forward(ops, &attended, len)?)?;

        let y = block.norm2.forward(ops, x, len)?;
        let mut hidden = block.fc1.forward(ops, &y, len)?; // [len, mlp]
        ops.activate(&mut hidden, Activation::GeluErf)?;
        ops.add(x, &block.fc2.forward(ops, &hidden, len)?)
    }
}

impl<O: ImageOps> Block<O> {
    fn load(ops: &O, w: &mut Weights, index: usize, width: usize, mlp: usize) -> Result<Self> {
        let name = |part: &str| format!("blocks.{index}.{part}");
        let qkv = w.tensor(&name("attn.qkv.weight"), &[3 * width, width])?;
        let qkv_bias = w.tensor(&name("attn.qkv.bias"), &[3 * width])?.to_f32();
        let third = |i: usize| {
            let rows = i * width..(i + 1) * width;
            let bias = HostTensor::from_f32("attn.qkv.bias", &[width], &qkv_bias[rows.clone()]);
            Dense::new(
                ops,
                MatrixPart {
                    tensor: qkv.clone(),
                    rows,
                    cols: 0..width,
                },
                Some(bias),
            )
        };
        Ok(Self {
            query: third(0)?,
            key: third(1)?,
            value: third(2)?,
            norm1: RowNorm::load(ops, w, &name("norm1"), Norm::Layer, width, EPS)?,
            proj: Dense::load(ops, w, &name("attn.proj"), width, width)?,
            norm2: RowNorm::load(ops, w, &name("norm2"), Norm::Layer, width, EPS)?,
            fc1: Dense::load(ops, w, &name("mlp.fc1"), width, mlp)?,
            fc2: Dense::load(ops, w, &name("mlp.fc2"), mlp, width)?,
        })
    }
}

/// Depth and MLP width, neither of which the configuration tells.
fn sizes(weights: &Weights, width: usize) -> (usize, usize) {
    match weights.shape("blocks.0.mlp.fc1.weight").as_deref() {
        Some([mlp, ..]) => {
            let exists = |i: &usize| weights.shape(&format!("blocks.{i}.norm1.weight")).is_some();
            ((0..).take_while(exists).count(), *mlp)
        }
        // so400m and giant, in this order.
        _ if width == 1152 => (27, 4304),
        _ => (40, 4 * width),
    }
}

fn grid_of(pixels: &Pixels) -> Grid {
    Grid::new(
        (pixels.height / PATCH) as u32,
        (pixels.width / PATCH) as u32,
    )
}

/// Each patch as one row: channel, then pixel row, then pixel column.
fn unfold(pixels: &Pixels) -> Vec<f32> {
    let mut patches = Vec::with_capacity(pixels.values.len());
    for y in 0..pixels.height / PATCH {
        for x in 0..pixels.width / PATCH {
            for line in (0..3).flat_map(|c| (0..PATCH).map(move |dy| c * pixels.height + dy)) {
                let start = (line + y * PATCH) * pixels.width + x * PATCH;
                patches.extend_from_slice(&pixels.values[start..start + PATCH]);
            }
        }
    }
    patches
}

/// Where one row or column of the resampled table reads the stored one.
struct Tap {
    low: usize,
    high: usize,
    fraction: f32,
}

impl Tap {
    fn new(index: usize, count: usize) -> Self {
        let scale = TABLE_SIDE as f32 / count as f32;
        let at = ((index as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (at as usize).min(TABLE_SIDE - 1);
        let high = (low + 1).min(TABLE_SIDE - 1);
        Self {
            low,
            high,
            fraction: at - low as f32,
        }
    }

    fn mix(&self, low: f32, high: f32) -> f32 {
        low * (1.0 - self.fraction) + high * self.fraction
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_table_is_taken_as_it_is() {
        for index in 0..TABLE_SIDE {
            let tap = Tap::new(index, TABLE_SIDE);
            assert_eq!((tap.low, tap.fraction), (index, 0.0));
        }
    }

    #[test]
    fn patches_run_over_channel_row_column() {
        let values: Vec<f32> = (0..3 * 16 * 32).map(|v| v as f32).collect();
        let rows = unfold(&Pixels {
            height: 16,
            width: 32,
            values,
        });
        let second = 3 * PATCH * PATCH;
        assert_eq!(rows[second], 16.0, "first pixel of the second patch");
        assert_eq!(rows[second + PATCH], 48.0, "its second row");
        assert_eq!(
            rows[second + PATCH * PATCH],
            16.0 + 512.0,
            "its second channel"
        );
    }
}
