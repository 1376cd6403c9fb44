//! The T5 v1.1 encoder (transformers `T5EncoderModel`), run on padded prompts without a mask.

use crate::{
    Error, Result,
    checkpoint::{HostTensor, Weights, flux::T5Config},
    model::{dense::Dense, embedding::Embedding, norm::RowNorm},
    ops::{Activation, AttentionShape, ImageOps, Norm},
};

/// The encoder, for sequences of one length.
pub struct T5<O: ImageOps> {
    config: T5Config,
    len: usize,
    tokens: Embedding,
    /// `[heads, len, len]`, of block 0, used by all.
    bias: O::Buffer,
    blocks: Vec<Block<O>>,
    final_norm: RowNorm<O>,
}

struct Block<O: ImageOps> {
    norm1: RowNorm<O>,
    query: Dense<O>,
    key: Dense<O>,
    value: Dense<O>,
    out: Dense<O>,
    norm2: RowNorm<O>,
    gate: Dense<O>,
    up: Dense<O>,
    down: Dense<O>,
}

impl<O: ImageOps> T5<O> {
    /// Takes the tensors of the encoder, for sequences of `len` ids.
    ///
    /// # Errors
    /// As [`Weights::tensor`] and [`Weights::finish`], and what the device says.
    pub fn load(ops: &O, mut weights: Weights, config: &T5Config, len: usize) -> Result<Self> {
        let (w, eps) = (&mut weights, config.layer_norm_eps);
        let table = ["shared.weight", "encoder.embed_tokens.weight"];
        let table = if w.contains(table[0]) {
            table[0]
        } else {
            table[1]
        };
        let tokens = Embedding::new(w.tensor(table, &[config.vocab, config.d_model])?);
        let table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let table = w.tensor(table, &[config.buckets, config.heads])?;
        let bias = ops.upload(&position_bias(&table, config, len))?;
        let blocks = (0..config.layers)
            .map(|i| Block::load(ops, w, i, config))
            .collect::<Result<_>>()?;
        let name = "encoder.final_layer_norm";
        let final_norm = RowNorm::load(ops, w, name, Norm::Rms, config.d_model, eps)?;
        weights.finish(|name| name == "shared.weight" || name == "encoder.embed_tokens.weight")?;
        Ok(Self {
            config: config.clone(),
            len,
            tokens,
            bias,
            blocks,
            final_norm,
        })
    }

    /// Ids of a sequence.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether sequences are empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The output `[len, d_model]` of the final norm; pads are positions like all others.
    ///
    /// # Errors
    /// [`Error::BadInput`] if there are not [`T5::len`] ids or one is outside the vocabulary;
    /// otherwise what the device says.
    pub fn forward(&self, ops: &O, ids: &[u32]) -> Result<O::Buffer> {
        if ids.len() != self.len {
            let limit = format!("{} T5 tokens", self.len);
            return Err(Error::bad_input("prompt", limit, ids.len()));
        }
        let mut x = ops.upload(&self.tokens.gather("prompt", ids)?)?; // [len, d_model]
        let (heads, head_dim) = (self.config.heads, self.config.d_kv);
        let shape = AttentionShape {
            batch: 1,
            len: self.len,
            heads,
            head_dim,
        };
        for block in &self.blocks {
            block.forward(ops, &mut x, shape, &self.bias)?;
        }
        self.final_norm.forward(ops, &x, self.len)
    }
}

impl<O: ImageOps> Block<O> {
    fn load(ops: &O, w: &mut Weights, index: usize, config: &T5Config) -> Result<Self> {
        let (width, inner, mlp) = (config.d_model, config.heads * config.d_kv, config.d_ff);
        let eps = config.layer_norm_eps;
        let attention = |part: &str| format!("encoder.block.{index}.layer.0.{part}");
        let feed_forward = |part: &str| format!("encoder.block.{index}.layer.1.{part}");
        let mut dense =
            |name: String, inputs, outputs| Dense::load_unbiased(ops, w, &name, inputs, outputs);
        Ok(Self {
            query: dense(attention("SelfAttention.q"), width, inner)?,
            key: dense(attention("SelfAttention.k"), width, inner)?,
            value: dense(attention("SelfAttention.v"), width, inner)?,
            out: dense(attention("SelfAttention.o"), inner, width)?,
            gate: dense(feed_forward("DenseReluDense.wi_0"), width, mlp)?,
            up: dense(feed_forward("DenseReluDense.wi_1"), width, mlp)?,
            down: dense(feed_forward("DenseReluDense.wo"), mlp, width)?,
            norm1: RowNorm::load(ops, w, &attention("layer_norm"), Norm::Rms, width, eps)?,
            norm2: RowNorm::load(ops, w, &feed_forward("layer_norm"), Norm::Rms, width, eps)?,
        })
    }

    fn forward(
        &self,
        ops: &O,
        x: &mut O::Buffer,
        shape: AttentionShape,
        bias: &O::Buffer,
    ) -> Result<()> {
        let len = shape.len;
        let y = self.norm1.forward(ops, x, len)?;
        let q = self.query.forward(ops, &y, len)?; // [len, heads·d_kv], as are k and v
        let k = self.key.forward(ops, &y, len)?;
        let v = self.value.forward(ops, &y, len)?;
        let mut attended = ops.buffer(len * shape.heads * shape.head_dim)?;
        ops.dense_attention(&q, &k, &v, shape, 1.0, Some(bias), false, &mut attended)?;
        ops.add(x, &self.out.forward(ops, &attended, len)?)?;

        let y = self.norm2.forward(ops, x, len)?;
        let mut gate = self.gate.forward(ops, &y, len)?; // [len, d_ff]
        let up = self.up.forward(ops, &y, len)?;
        ops.activate_mul(&mut gate, &up, Activation::GeluTanh)?;
        ops.add(x, &self.down.forward(ops, &gate, len)?)
    }
}

/// `[heads, len, len]`: the table's `[buckets, heads]` entry for the distance of key and query.
fn position_bias(table: &HostTensor, config: &T5Config, len: usize) -> Vec<f32> {
    let (table, heads) = (table.to_f32(), config.heads);
    // Distances from -(len - 1) to len - 1, shifted to start at 0.
    let buckets: Vec<usize> = (0..2 * len)
        .map(|shifted| {
            bucket(
                shifted as i64 - len as i64,
                config.buckets,
                config.max_distance,
            )
        })
        .collect();
    let mut bias = Vec::with_capacity(heads * len * len);
    for head in 0..heads {
        for query in 0..len {
            bias.extend((0..len).map(|key| table[buckets[key + len - query] * heads + head]));
        }
    }
    bias
}

/// The bidirectional bucket of `distance` = key − query.
fn bucket(distance: i64, buckets: usize, max_distance: usize) -> usize {
    let half = buckets / 2;
    let exact = half / 2;
    let sign = if distance > 0 { half } else { 0 };
    let n = distance.unsigned_abs() as usize;
    if n < exact {
        return sign + n;
    }
    let range = libm::log(max_distance as f64 / exact as f64) as f32;
    let log = libm::logf(n as f32 / exact as f32) / range * (half - exact) as f32;
    sign + (exact + log as usize).min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_exact_then_logarithmic() {
        let of = |distance| bucket(distance, 32, 128);
        assert_eq!([of(0), of(-7), of(7)], [0, 7, 23]);
        assert_eq!([of(-8), of(-16), of(-32), of(-64)], [8, 10, 12, 14]);
        assert_eq!([of(-128), of(-511), of(511)], [15, 15, 31]);
    }
}
