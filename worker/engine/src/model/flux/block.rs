//! The blocks' weights and the work of one stream in them.

use crate::{
    Result,
    checkpoint::{FluxConfig, Weights},
    model::dense::Dense,
    ops::{Activation, AttentionShape, Device, ImageOps, MatrixPart},
};

use super::{BATCH, EPS};

/// Queries, keys and values of a stream, the first two normalised per head.
pub struct Projection<O: ImageOps> {
    query: Dense<O>,
    key: Dense<O>,
    value: Dense<O>,
    norm_q: O::Vector,
    norm_k: O::Vector,
}

impl<O: ImageOps> Projection<O> {
    fn load(
        ops: &O,
        w: &mut Weights,
        linear: [String; 3],
        norm: [String; 2],
        config: &FluxConfig,
    ) -> Result<Self> {
        let width = config.heads * config.head_dim;
        let [query, key, value] = linear.map(|name| Dense::load(ops, w, &name, width, width));
        let [norm_q, norm_k] = norm
            .map(|name| ops.vector(&[w.tensor(&format!("{name}.weight"), &[config.head_dim])?]));
        Ok(Self {
            query: query?,
            key: key?,
            value: value?,
            norm_q: norm_q?,
            norm_k: norm_k?,
        })
    }

    /// `x` `[batch·len, D]` to `qkv`, rotated by `rope` `[len, head_dim/2]` where given.
    pub fn forward(
        &self,
        ops: &O,
        x: &O::Buffer,
        shape: AttentionShape,
        rope: Option<(&O::Buffer, &O::Buffer)>,
        qkv: &mut Qkv<O>,
    ) -> Result<()> {
        let rows = shape.batch * shape.len;
        self.query.forward_into(ops, x, rows, &mut qkv.query)?;
        self.key.forward_into(ops, x, rows, &mut qkv.key)?;
        self.value.forward_into(ops, x, rows, &mut qkv.value)?;
        ops.head_norm_rope(&mut qkv.query, shape, &self.norm_q, EPS, rope)?;
        ops.head_norm_rope(&mut qkv.key, shape, &self.norm_k, EPS, rope)
    }
}

/// Buffers of queries, keys and values, `[rows, D]` each.
pub struct Qkv<O: Device> {
    pub query: O::Buffer,
    pub key: O::Buffer,
    pub value: O::Buffer,
}

impl<O: Device> Qkv<O> {
    pub fn new(ops: &O, len: usize) -> Result<Self> {
        Ok(Self {
            query: ops.buffer(len)?,
            key: ops.buffer(len)?,
            value: ops.buffer(len)?,
        })
    }
}

/// One stream of a double block.
pub struct Stream<O: ImageOps> {
    width: usize,
    modulation: Dense<O>,
    projection: Projection<O>,
    out: Dense<O>,
    up: Dense<O>,
    down: Dense<O>,
}

/// What one stream of the double blocks works on.
pub struct StreamState<O: ImageOps> {
    /// Positions of each batch row.
    pub len: usize,
    /// Hidden states `[BATCH·len, D]`.
    pub x: O::Buffer,
    /// Scratch `[BATCH·len, D]`: normalised rows, then attention output.
    pub y: O::Buffer,
    pub qkv: Qkv<O>,
    branch: O::Buffer,
    hidden: O::Buffer,
    modulation: O::Buffer,
}

impl<O: ImageOps> StreamState<O> {
    pub fn new(ops: &O, x: O::Buffer, len: usize, width: usize) -> Result<Self> {
        let rows = BATCH * len;
        Ok(Self {
            len,
            x,
            y: ops.buffer(rows * width)?,
            qkv: Qkv::new(ops, rows * width)?,
            branch: ops.buffer(rows * width)?,
            hidden: ops.buffer(rows * 4 * width)?,
            modulation: ops.buffer(BATCH * 6 * width)?,
        })
    }
}

/// Columns of a modulation row, in units of D.
mod columns {
    pub const SHIFT_1: usize = 0;
    pub const SCALE_1: usize = 1;
    pub const GATE_1: usize = 2;
    pub const SHIFT_2: usize = 3;
    pub const SCALE_2: usize = 4;
    pub const GATE_2: usize = 5;
}

impl<O: ImageOps> Stream<O> {
    /// Modulates and projects the stream; `vector` is the activated conditioning `[BATCH, D]`.
    pub fn before_attention(
        &self,
        ops: &O,
        s: &mut StreamState<O>,
        vector: &O::Buffer,
        shape: AttentionShape,
        rope: Option<(&O::Buffer, &O::Buffer)>,
    ) -> Result<()> {
        let (rows, d) = (BATCH * s.len, self.width);
        let (shift, scale) = (columns::SHIFT_1 * d, columns::SCALE_1 * d);
        self.modulation
            .forward_into(ops, vector, BATCH, &mut s.modulation)?; // [BATCH, 6 D]
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
        self.projection.forward(ops, &s.y, shape, rope, &mut s.qkv)
    }

    /// Adds the attention output in `s.y`, then the feed-forward branch.
    pub fn after_attention(&self, ops: &O, s: &mut StreamState<O>) -> Result<()> {
        let (rows, d) = (BATCH * s.len, self.width);
        self.out.forward_into(ops, &s.y, rows, &mut s.branch)?;
        let gate = columns::GATE_1 * d;
        ops.gated_add(&mut s.x, &s.branch, rows, d, &s.modulation, BATCH, gate)?;

        let (shift, scale) = (columns::SHIFT_2 * d, columns::SCALE_2 * d);
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
        self.up.forward_into(ops, &s.y, rows, &mut s.hidden)?; // [BATCH·len, 4 D]
        ops.activate(&mut s.hidden, Activation::GeluTanh)?;
        self.down
            .forward_into(ops, &s.hidden, rows, &mut s.branch)?;
        let gate = columns::GATE_2 * d;
        ops.gated_add(&mut s.x, &s.branch, rows, d, &s.modulation, BATCH, gate)
    }
}

/// Image and text stream, attending jointly.
pub struct DoubleBlock<O: ImageOps> {
    pub image: Stream<O>,
    pub text: Stream<O>,
}

impl<O: ImageOps> DoubleBlock<O> {
    pub fn load(ops: &O, w: &mut Weights, index: usize, config: &FluxConfig) -> Result<Self> {
        let d = config.heads * config.head_dim;
        let name = |part: &str| format!("transformer_blocks.{index}.{part}");
        let image = ["attn.to_q", "attn.to_k", "attn.to_v"].map(name);
        let text = ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"].map(name);
        let image_norm = ["attn.norm_q", "attn.norm_k"].map(name);
        let text_norm = ["attn.norm_added_q", "attn.norm_added_k"].map(name);
        Ok(Self {
            image: Stream {
                width: d,
                modulation: Dense::load(ops, w, &name("norm1.linear"), d, 6 * d)?,
                projection: Projection::load(ops, w, image, image_norm, config)?,
                out: Dense::load(ops, w, &name("attn.to_out.0"), d, d)?,
                up: Dense::load(ops, w, &name("ff.net.0.proj"), d, 4 * d)?,
                down: Dense::load(ops, w, &name("ff.net.2"), 4 * d, d)?,
            },
            text: Stream {
                width: d,
                modulation: Dense::load(ops, w, &name("norm1_context.linear"), d, 6 * d)?,
                projection: Projection::load(ops, w, text, text_norm, config)?,
                out: Dense::load(ops, w, &name("attn.to_add_out"), d, d)?,
                up: Dense::load(ops, w, &name("ff_context.net.0.proj"), d, 4 * d)?,
                down: Dense::load(ops, w, &name("ff_context.net.2"), 4 * d, d)?,
            },
        })
    }
}

/// One stream of text and image, attention beside the feed-forward branch.
pub struct SingleBlock<O: ImageOps> {
    pub modulation: Dense<O>,
    pub projection: Projection<O>,
    pub up: Dense<O>,
    /// The columns of `proj_out` that read the attention output, with its bias …
    pub out_attention: Dense<O>,
    /// … and those that read the feed-forward branch.
    pub out_hidden: Dense<O>,
}

impl<O: ImageOps> SingleBlock<O> {
    pub fn load(ops: &O, w: &mut Weights, index: usize, config: &FluxConfig) -> Result<Self> {
        let d = config.heads * config.head_dim;
        let name = |part: &str| format!("single_transformer_blocks.{index}.{part}");
        let linear = ["attn.to_q", "attn.to_k", "attn.to_v"].map(name);
        let norm = ["attn.norm_q", "attn.norm_k"].map(name);
        let out = w.tensor(&name("proj_out.weight"), &[d, 5 * d])?;
        let bias = w.tensor(&name("proj_out.bias"), &[d])?;
        let columns = |cols| MatrixPart {
            tensor: out.clone(),
            rows: 0..d,
            cols,
        };
        Ok(Self {
            modulation: Dense::load(ops, w, &name("norm.linear"), d, 3 * d)?,
            projection: Projection::load(ops, w, linear, norm, config)?,
            up: Dense::load(ops, w, &name("proj_mlp"), d, 4 * d)?,
            out_attention: Dense::new(ops, columns(0..d), Some(bias))?,
            out_hidden: Dense::new(ops, columns(d..5 * d), None)?,
        })
    }
}
