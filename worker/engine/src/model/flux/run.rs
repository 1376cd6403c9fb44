//! One picture in the transformer.

use crate::{
    Result,
    model::dense::Dense,
    ops::{Activation, AttentionShape, ImageOps},
    text::grid::Grid,
};

use super::{
    BATCH, EPS, Flux,
    block::{DoubleBlock, Qkv, SingleBlock, StreamState},
    embed::{rope_tables, sinusoid},
};

/// The distilled guidance input; guidance proper combines the two rows of the batch.
const DISTILLED_GUIDANCE: f32 = 1.0;

const TIME_SCALE: f32 = 1000.0;

/// What a picture is conditioned on; batch row 0 is the prompt's, row 1 the empty prompt's.
pub struct Conditions<'a, O: ImageOps> {
    /// T5 output `[BATCH·text_len, joint_attention_dim]`.
    pub text: &'a O::Buffer,
    /// Positions of the T5 output.
    pub text_len: usize,
    /// CLIP vectors `[BATCH, pooled_projection_dim]`.
    pub pooled: &'a O::Buffer,
    /// Decoded picture tokens `[H·W, siglip_channels]`, of row 0; row 1 has none.
    pub siglip: &'a O::Buffer,
    /// The picture's grid; packed latents have the same.
    pub grid: Grid,
}

/// What the steps of one picture share, and the buffers that they work in.
pub struct FluxRun<'a, O: ImageOps> {
    ops: &'a O,
    flux: &'a Flux<O>,
    /// Embedded texts `[BATCH·text_len, D]`.
    context: O::Buffer,
    /// Embedded picture tokens `[BATCH·H·W, D]`, zero in row 1.
    siglip: O::Buffer,
    /// Embedded guidance and pooled texts `[BATCH, D]`.
    vector: O::Buffer,
    /// Cosines and sines of the image positions, and of all.
    image_rope: (O::Buffer, O::Buffer),
    joint_rope: (O::Buffer, O::Buffer),

    /// The conditioning vector `[BATCH, D]` of the step, and its activation.
    temb: O::Buffer,
    activated: O::Buffer,
    image: StreamState<O>,
    text: StreamState<O>,
    joint: JointState<O>,
}

/// Text and image as one sequence of `len` positions, text first.
struct JointState<O: ImageOps> {
    len: usize,
    x: O::Buffer,
    y: O::Buffer,
    qkv: Qkv<O>,
    attended: O::Buffer,
    hidden: O::Buffer,
    modulation: O::Buffer,
    out_modulation: O::Buffer,
}

impl<'a, O: ImageOps> FluxRun<'a, O> {
    /// Embeds what does not change from step to step.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(ops: &'a O, flux: &'a Flux<O>, conditions: &Conditions<'_, O>) -> Result<Self> {
        let (d, config) = (flux.width(), flux.config());
        let (text, image) = (conditions.text_len, conditions.grid.tokens());
        let context = flux
            .context_embedder
            .forward(ops, conditions.text, BATCH * text)?;

        let embedded = flux.siglip_embed.forward(ops, conditions.siglip, image)?;
        let mut siglip = ops.buffer(BATCH * image * d)?;
        ops.copy_rows(&embedded, 0, &mut siglip, 0, image, d)?;

        let mut vector = flux.text_embedder.forward(ops, conditions.pooled, BATCH)?; // [BATCH, D]
        if let Some(embedder) = &flux.guidance_embedder {
            let guidance = ops.upload(&sinusoid(DISTILLED_GUIDANCE * TIME_SCALE).repeat(BATCH))?;
            ops.add(&mut vector, &embedder.forward(ops, &guidance, BATCH)?)?;
        }

        let (cos, sin) = rope_tables(config.axes_dims_rope, text, conditions.grid);
        let of_image = text * config.head_dim / 2;
        let len = text + image;
        Ok(Self {
            image_rope: (ops.upload(&cos[of_image..])?, ops.upload(&sin[of_image..])?),
            joint_rope: (ops.upload(&cos)?, ops.upload(&sin)?),
            temb: ops.buffer(BATCH * d)?,
            activated: ops.buffer(BATCH * d)?,
            image: StreamState::new(ops, ops.buffer(BATCH * image * d)?, image, d)?,
            text: StreamState::new(ops, ops.buffer(BATCH * text * d)?, text, d)?,
            joint: JointState {
                len,
                x: ops.buffer(BATCH * len * d)?,
                y: ops.buffer(BATCH * len * d)?,
                qkv: Qkv::new(ops, BATCH * len * d)?,
                attended: ops.buffer(BATCH * len * d)?,
                hidden: ops.buffer(BATCH * len * 4 * d)?,
                modulation: ops.buffer(BATCH * 3 * d)?,
                out_modulation: ops.buffer(BATCH * 2 * d)?,
            },
            ops,
            flux,
            context,
            siglip,
            vector,
        })
    }

    /// The velocities `[BATCH·H·W, out_channels]` at packed latents `[H·W, in_channels]` and a
    /// scheduler timestep (0 to 1000).
    ///
    /// # Errors
    /// What the device says.
    pub fn velocity(
        &mut self,
        latents: &O::Buffer,
        timestep: f32,
        out: &mut O::Buffer,
    ) -> Result<()> {
        self.embed(latents, timestep)?;
        self.double_blocks()?;
        self.inject_siglip()?;
        self.single_blocks()?;
        self.output(out)
    }

    /// Embeds the step's latents and time.
    ///
    /// # Errors
    /// What the device says.
    pub fn embed(&mut self, latents: &O::Buffer, timestep: f32) -> Result<()> {
        let (ops, d, len) = (self.ops, self.flux.width(), self.image.len);
        let time = timestep / TIME_SCALE * TIME_SCALE;
        let time = ops.upload(&sinusoid(time).repeat(BATCH))?; // [BATCH, 256]
        self.temb = self.flux.timestep_embedder.forward(ops, &time, BATCH)?;
        ops.add(&mut self.temb, &self.vector)?;
        ops.copy_rows(&self.temb, 0, &mut self.activated, 0, BATCH, d)?;
        ops.activate(&mut self.activated, Activation::Silu)?;

        let StreamState { x, y, .. } = &mut self.image;
        self.flux.x_embedder.forward_into(ops, latents, len, y)?; // [H·W, D], the same in all rows
        for row in 0..BATCH {
            ops.copy_rows(y, 0, x, row * len, len, d)?;
        }
        ops.copy_rows(
            &self.context,
            0,
            &mut self.text.x,
            0,
            BATCH * self.text.len,
            d,
        )
    }

    /// Runs the double blocks over both streams.
    ///
    /// # Errors
    /// What the device says.
    pub fn double_blocks(&mut self) -> Result<()> {
        let flux = self.flux;
        flux.double_blocks
            .iter()
            .try_for_each(|block| self.double_block(block))
    }

    fn double_block(&mut self, block: &DoubleBlock<O>) -> Result<()> {
        let (ops, d, shape) = (self.ops, self.flux.width(), self.shape(self.joint.len));
        let (image_shape, text_shape) = (self.shape(self.image.len), self.shape(self.text.len));
        let Self {
            image,
            text,
            joint,
            activated,
            ..
        } = self;
        let rope = Some((&self.image_rope.0, &self.image_rope.1));
        block
            .image
            .before_attention(ops, image, activated, image_shape, rope)?;
        // Texts stand at the origin: nothing to rotate.
        block
            .text
            .before_attention(ops, text, activated, text_shape, None)?;

        let (from, and, to) = (&text.qkv, &image.qkv, &mut joint.qkv);
        let lens = (text.len, image.len);
        join(ops, (&from.query, &and.query), &mut to.query, lens, d)?; // [BATCH·(text + image), D]
        join(ops, (&from.key, &and.key), &mut to.key, lens, d)?;
        join(ops, (&from.value, &and.value), &mut to.value, lens, d)?;
        attend(ops, shape, joint)?;
        split(ops, &joint.attended, (&mut text.y, &mut image.y), lens, d)?;

        block.image.after_attention(ops, image)?;
        block.text.after_attention(ops, text)
    }

    /// Adds the picture's tokens to the image stream.
    ///
    /// # Errors
    /// What the device says.
    pub fn inject_siglip(&mut self) -> Result<()> {
        self.ops.add(&mut self.image.x, &self.siglip)
    }

    /// Runs the single blocks over the joint sequence.
    ///
    /// # Errors
    /// What the device says.
    pub fn single_blocks(&mut self) -> Result<()> {
        let (flux, d) = (self.flux, self.flux.width());
        let lens = (self.text.len, self.image.len);
        join(
            self.ops,
            (&self.text.x, &self.image.x),
            &mut self.joint.x,
            lens,
            d,
        )?;
        flux.single_blocks
            .iter()
            .try_for_each(|block| self.single_block(block))?;
        split(
            self.ops,
            &self.joint.x,
            (&mut self.text.x, &mut self.image.x),
            lens,
            d,
        )
    }

    fn single_block(&mut self, block: &SingleBlock<O>) -> Result<()> {
        let (ops, d, shape) = (self.ops, self.flux.width(), self.shape(self.joint.len));
        let rope = Some((&self.joint_rope.0, &self.joint_rope.1));
        let (s, rows) = (&mut self.joint, BATCH * shape.len);
        let (shift, scale, gate) = (0, d, 2 * d);
        block
            .modulation
            .forward_into(ops, &self.activated, BATCH, &mut s.modulation)?;
        ops.adaptive_norm(
            &s.x,
            rows,
            d,
            &s.modulation,
            BATCH,
            shift,
            scale,
            EPS,
            &mut s.y,
        )?;
        block.up.forward_into(ops, &s.y, rows, &mut s.hidden)?; // [BATCH·len, 4 D]
        ops.activate(&mut s.hidden, Activation::GeluTanh)?;
        block
            .projection
            .forward(ops, &s.y, shape, rope, &mut s.qkv)?;
        attend(ops, shape, s)?;

        // proj_out over the concatenation of both branches, as the sum of its two parts.
        for (part, input) in [
            (&block.out_attention, &s.attended),
            (&block.out_hidden, &s.hidden),
        ] {
            let part: &Dense<O> = part;
            part.forward_into(ops, input, rows, &mut s.y)?;
            ops.gated_add(&mut s.x, &s.y, rows, d, &s.modulation, BATCH, gate)?;
        }
        Ok(())
    }

    /// The velocities `[BATCH·H·W, out_channels]` of the image stream.
    ///
    /// # Errors
    /// What the device says.
    pub fn output(&mut self, out: &mut O::Buffer) -> Result<()> {
        let (ops, d, rows) = (self.ops, self.flux.width(), BATCH * self.image.len);
        let (modulation, s) = (&mut self.joint.out_modulation, &mut self.image);
        let (scale, shift) = (0, d);
        self.flux
            .norm_out
            .forward_into(ops, &self.activated, BATCH, modulation)?; // [BATCH, 2 D]
        ops.adaptive_norm(
            &s.x, rows, d, modulation, BATCH, shift, scale, EPS, &mut s.y,
        )?;
        self.flux.proj_out.forward_into(ops, &s.y, rows, out)
    }

    /// The conditioning vector `[BATCH, D]` of the step.
    pub fn conditioning(&self) -> &O::Buffer {
        &self.temb
    }

    /// The image stream `[BATCH·H·W, D]`.
    pub fn image(&self) -> &O::Buffer {
        &self.image.x
    }

    /// The text stream `[BATCH·text_len, D]`.
    pub fn text(&self) -> &O::Buffer {
        &self.text.x
    }

    fn shape(&self, len: usize) -> AttentionShape {
        let (heads, head_dim) = (self.flux.config.heads, self.flux.config.head_dim);
        AttentionShape {
            batch: BATCH,
            len,
            heads,
            head_dim,
        }
    }
}

fn attend<O: ImageOps>(ops: &O, shape: AttentionShape, s: &mut JointState<O>) -> Result<()> {
    let (scale, qkv) = (libm::powf(shape.head_dim as f32, -0.5), &s.qkv);
    let (q, k, v) = (&qkv.query, &qkv.key, &qkv.value);
    ops.dense_attention(q, k, v, shape, scale, None, false, &mut s.attended)
}

/// Both streams `[BATCH·len, width]` as one, the first one's positions first in every batch row.
fn join<O: ImageOps>(
    ops: &O,
    (first, second): (&O::Buffer, &O::Buffer),
    joint: &mut O::Buffer,
    (first_len, second_len): (usize, usize),
    width: usize,
) -> Result<()> {
    for row in 0..BATCH {
        let start = row * (first_len + second_len);
        ops.copy_rows(first, row * first_len, joint, start, first_len, width)?;
        ops.copy_rows(
            second,
            row * second_len,
            joint,
            start + first_len,
            second_len,
            width,
        )?;
    }
    Ok(())
}

/// The inverse of [`join`].
fn split<O: ImageOps>(
    ops: &O,
    joint: &O::Buffer,
    (first, second): (&mut O::Buffer, &mut O::Buffer),
    (first_len, second_len): (usize, usize),
    width: usize,
) -> Result<()> {
    for row in 0..BATCH {
        let start = row * (first_len + second_len);
        ops.copy_rows(joint, start, first, row * first_len, first_len, width)?;
        ops.copy_rows(
            joint,
            start + first_len,
            second,
            row * second_len,
            second_len,
            width,
        )?;
    }
    Ok(())
}
