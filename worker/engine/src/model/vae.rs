//! The decoder half of the VAE (diffusers `AutoencoderKL`): latents to pixels.

use crate::{
    Error, Result,
    checkpoint::{Weights, flux::VaeConfig},
    model::{conv::Conv, dense::Dense, norm::GroupNorm},
    ops::{Activation, AttentionShape, ImageOps},
    picture::Picture,
};

/// Pixels per latent, on each axis: one doubling less than there are resolutions.
pub const SCALE: usize = 8;

const EPS: f32 = 1e-6;

/// A channel-last picture `[height·width, channels]` on the device.
pub struct FeatureMap<O: ImageOps> {
    /// The values.
    pub values: O::Buffer,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// The decoder.
pub struct Vae<O: ImageOps> {
    config: VaeConfig,
    conv_in: Conv<O>,
    mid: (Resnet<O>, Attention<O>, Resnet<O>),
    up_blocks: Vec<UpBlock<O>>,
    conv_norm_out: GroupNorm<O>,
    conv_out: Conv<O>,
}

struct Resnet<O: ImageOps> {
    norm1: GroupNorm<O>,
    conv1: Conv<O>,
    norm2: GroupNorm<O>,
    conv2: Conv<O>,
    shortcut: Option<Conv<O>>,
}

struct Attention<O: ImageOps> {
    channels: usize,
    norm: GroupNorm<O>,
    query: Dense<O>,
    key: Dense<O>,
    value: Dense<O>,
    out: Dense<O>,
}

struct UpBlock<O: ImageOps> {
    channels: usize,
    resnets: Vec<Resnet<O>>,
    upsampler: Option<Conv<O>>,
}

impl<O: ImageOps> Vae<O> {
    /// Takes the tensors of the decoder and ignores the encoder's.
    ///
    /// # Errors
    /// As [`Weights::tensor`] and [`Weights::finish`], and what the device says;
    /// [`Error::Unsupported`] if the groups do not divide the channels.
    pub fn load(ops: &O, mut weights: Weights, config: &VaeConfig) -> Result<Self> {
        let (w, groups) = (&mut weights, config.norm_num_groups);
        let [finest, .., coarsest] = config.block_out_channels;
        let divides = |channels: &usize| groups > 0 && channels.is_multiple_of(groups);
        if !config.block_out_channels.iter().all(divides) {
            let reason = format!("not divisible by {groups} groups");
            let what = format!("VAE channels {:?}", config.block_out_channels);
            return Err(Error::Unsupported { what, reason });
        }
        let mid = "decoder.mid_block";
        let resnet = format!("{mid}.resnets");
        let conv_in = Conv::load(
            ops,
            w,
            "decoder.conv_in",
            config.latent_channels,
            coarsest,
            3,
        )?;
        let mid = (
            Resnet::load(ops, w, &format!("{resnet}.0"), coarsest, coarsest, groups)?,
            Attention::load(ops, w, &format!("{mid}.attentions.0"), coarsest, groups)?,
            Resnet::load(ops, w, &format!("{resnet}.1"), coarsest, coarsest, groups)?,
        );
        let mut inputs = coarsest;
        let mut up_blocks = Vec::new();
        for (index, &outputs) in config.block_out_channels.iter().rev().enumerate() {
            up_blocks.push(UpBlock::load(ops, w, index, inputs, outputs, config)?);
            inputs = outputs;
        }
        let conv_norm_out = GroupNorm::load(ops, w, "decoder.conv_norm_out", finest, groups, EPS)?;
        let conv_out = Conv::load(ops, w, "decoder.conv_out", finest, 3, 3)?;
        weights.finish(|name| !name.starts_with("decoder."))?;
        Ok(Self {
            config: config.clone(),
            conv_in,
            mid,
            up_blocks,
            conv_norm_out,
            conv_out,
        })
    }

    /// Latents as the denoising loop leaves them, brought to the range that [`Vae::decode`] reads.
    pub fn scale(&self, latents: &mut [f32]) {
        for value in latents {
            *value = *value / self.config.scaling_factor + self.config.shift_factor;
        }
    }

    /// Scaled channel-last latents `[height·width, latent_channels]` to channel-last pixels
    /// `[8 height · 8 width, 3]`, nominally in -1..=1.
    ///
    /// # Errors
    /// What the device says.
    pub fn decode(
        &self,
        ops: &O,
        latents: &[f32],
        height: usize,
        width: usize,
    ) -> Result<FeatureMap<O>> {
        let x = self.conv_in(ops, latents, height, width)?;
        let mut x = self.mid_block(ops, x)?;
        for index in 0..self.up_blocks.len() {
            x = self.up_block(ops, index, x)?;
        }
        self.out(ops, x)
    }

    /// Latents to `[height·width, c3]`.
    ///
    /// # Errors
    /// What the device says.
    pub fn conv_in(
        &self,
        ops: &O,
        latents: &[f32],
        height: usize,
        width: usize,
    ) -> Result<FeatureMap<O>> {
        let values = self
            .conv_in
            .forward(ops, &ops.upload(latents)?, height, width)?;
        Ok(FeatureMap {
            values,
            height,
            width,
        })
    }

    /// Residual block, attention over all positions, residual block.
    ///
    /// # Errors
    /// What the device says.
    pub fn mid_block(&self, ops: &O, mut x: FeatureMap<O>) -> Result<FeatureMap<O>> {
        let (first, attention, second) = &self.mid;
        first.forward(ops, &mut x)?;
        attention.forward(ops, &mut x)?;
        second.forward(ops, &mut x)?;
        Ok(x)
    }

    /// Up block `index` (of four): residual blocks, then enlargement by two except in the last.
    ///
    /// # Errors
    /// What the device says.
    pub fn up_block(&self, ops: &O, index: usize, mut x: FeatureMap<O>) -> Result<FeatureMap<O>> {
        let block = &self.up_blocks[index];
        for resnet in &block.resnets {
            resnet.forward(ops, &mut x)?;
        }
        let Some(upsampler) = &block.upsampler else {
            return Ok(x);
        };
        let (height, width) = (2 * x.height, 2 * x.width);
        let mut enlarged = ops.buffer(height * width * block.channels)?;
        ops.upsample2x(&x.values, x.height, x.width, block.channels, &mut enlarged)?;
        drop(x);
        let values = upsampler.forward(ops, &enlarged, height, width)?;
        Ok(FeatureMap {
            values,
            height,
            width,
        })
    }

    /// The features of the last up block to pixels.
    ///
    /// # Errors
    /// What the device says.
    pub fn out(&self, ops: &O, x: FeatureMap<O>) -> Result<FeatureMap<O>> {
        let (height, width) = (x.height, x.width);
        let silu = Some(Activation::Silu);
        let y = self
            .conv_norm_out
            .forward(ops, &x.values, height * width, silu)?;
        drop(x);
        let values = self.conv_out.forward(ops, &y, height, width)?;
        Ok(FeatureMap {
            values,
            height,
            width,
        })
    }
}

impl<O: ImageOps> Resnet<O> {
    fn load(
        ops: &O,
        w: &mut Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
        groups: usize,
    ) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let shortcut = (inputs != outputs)
            .then(|| Conv::load(ops, w, &part("conv_shortcut"), inputs, outputs, 1))
            .transpose()?;
        Ok(Self {
            norm1: GroupNorm::load(ops, w, &part("norm1"), inputs, groups, EPS)?,
            conv1: Conv::load(ops, w, &part("conv1"), inputs, outputs, 3)?,
            norm2: GroupNorm::load(ops, w, &part("norm2"), outputs, groups, EPS)?,
            conv2: Conv::load(ops, w, &part("conv2"), outputs, outputs, 3)?,
            shortcut,
        })
    }

    fn forward(&self, ops: &O, x: &mut FeatureMap<O>) -> Result<()> {
        let (height, width, silu) = (x.height, x.width, Some(Activation::Silu));
        let y = self.norm1.forward(ops, &x.values, height * width, silu)?;
        let y = self.conv1.forward(ops, &y, height, width)?;
        let y = self.norm2.forward(ops, &y, height * width, silu)?;
        let y = self.conv2.forward(ops, &y, height, width)?;
        if let Some(shortcut) = &self.shortcut {
            x.values = shortcut.forward(ops, &x.values, height, width)?;
        }
        ops.add(&mut x.values, &y)
    }
}

impl<O: ImageOps> Attention<O> {
    fn load(ops: &O, w: &mut Weights, name: &str, channels: usize, groups: usize) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        Ok(Self {
            channels,
            norm: GroupNorm::load(ops, w, &part("group_norm"), channels, groups, EPS)?,
            query: Dense::load(ops, w, &part("to_q"), channels, channels)?,
            key: Dense::load(ops, w, &part("to_k"), channels, channels)?,
            value: Dense::load(ops, w, &part("to_v"), channels, channels)?,
            out: Dense::load(ops, w, &part("to_out.0"), channels, channels)?,
        })
    }

    fn forward(&self, ops: &O, x: &mut FeatureMap<O>) -> Result<()> {
        let len = x.height * x.width;
        let shape = AttentionShape {
            batch: 1,
            len,
            heads: 1,
            head_dim: self.channels,
        };
        let y = self.norm.forward(ops, &x.values, len, None)?;
        let q = self.query.forward(ops, &y, len)?; // [height·width, channels], as are k and v
        let k = self.key.forward(ops, &y, len)?;
        let v = self.value.forward(ops, &y, len)?;
        let mut attended = y;
        let scale = libm::powf(self.channels as f32, -0.5);
        ops.dense_attention(&q, &k, &v, shape, scale, None, false, &mut attended)?;
        ops.add(&mut x.values, &self.out.forward(ops, &attended, len)?)
    }
}

impl<O: ImageOps> UpBlock<O> {
    fn load(
        ops: &O,
        w: &mut Weights,
        index: usize,
        inputs: usize,
        outputs: usize,
        config: &VaeConfig,
    ) -> Result<Self> {
        let name = format!("decoder.up_blocks.{index}");
        let resnets = (0..=config.layers_per_block)
            .map(|i| {
                let inputs = if i == 0 { inputs } else { outputs };
                let name = format!("{name}.resnets.{i}");
                Resnet::load(ops, w, &name, inputs, outputs, config.norm_num_groups)
            })
            .collect::<Result<_>>()?;
        let last = index + 1 == config.block_out_channels.len();
        let name = format!("{name}.upsamplers.0.conv");
        let upsampler = (!last)
            .then(|| Conv::load(ops, w, &name, outputs, outputs, 3))
            .transpose()?;
        Ok(Self {
            channels: outputs,
            resnets,
            upsampler,
        })
    }
}

/// Channel-last pixels `[height·width, 3]` in -1..=1 as 8-bit RGB, halves rounded to even.
pub fn to_picture(pixels: &[f32], height: usize, width: usize) -> Picture {
    let level = |v: &f32| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    Picture {
        width,
        height,
        rgb: pixels.iter().map(level).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_clamped_and_rounded() {
        let picture = to_picture(&[-1.5, -1.0, 0.0, 1.0, 7.0, 0.999], 1, 2);
        assert_eq!(picture.rgb, [0, 0, 128, 255, 255, 255]);
    }
}
