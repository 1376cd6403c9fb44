//! The CLIP text model (transformers `CLIPTextModel`), for its pooled vector.

use crate::{
    Error, Result,
    checkpoint::{Weights, flux::ClipConfig},
    model::{dense::Dense, embedding::Embedding, norm::RowNorm},
    ops::{Activation, AttentionShape, ImageOps, Norm},
};

/// The end token id of old configuration files, which no sequence holds.
const LEGACY_EOS: u32 = 2;

/// The text model.
pub struct Clip<O: ImageOps> {
    config: ClipConfig,
    tokens: Embedding,
    positions: Vec<f32>,
    layers: Vec<Layer<O>>,
    final_norm: RowNorm<O>,
}

struct Layer<O: ImageOps> {
    norm1: RowNorm<O>,
    query: Dense<O>,
    key: Dense<O>,
    value: Dense<O>,
    out: Dense<O>,
    norm2: RowNorm<O>,
    fc1: Dense<O>,
    fc2: Dense<O>,
}

impl<O: ImageOps> Clip<O> {
    /// Takes the tensors of the text model.
    ///
    /// # Errors
    /// As [`Weights::tensor`] and [`Weights::finish`], and what the device says.
    pub fn load(ops: &O, mut weights: Weights, config: &ClipConfig) -> Result<Self> {
        let (width, w) = (config.hidden, &mut weights);
        let embeddings = "text_model.embeddings";
        let tokens = format!("{embeddings}.token_embedding.weight");
        let tokens = Embedding::new(w.tensor(&tokens, &[config.vocab, width])?);
        let positions = format!("{embeddings}.position_embedding.weight");
        let positions = w.tensor(&positions, &[config.positions, width])?.to_f32();
        let layers = (0..config.layers)
            .map(|i| Layer::load(ops, w, i, config))
            .collect::<Result<_>>()?;
        let (name, eps) = ("text_model.final_layer_norm", config.layer_norm_eps);
        let final_norm = RowNorm::load(ops, w, name, Norm::Layer, width, eps)?;
        weights.finish(|name| name.ends_with("position_ids"))?;
        Ok(Self {
            config: config.clone(),
            tokens,
            positions,
            layers,
            final_norm,
        })
    }

    /// The pooled vector `[1, hidden]`: the output at the first end token.
    ///
    /// # Errors
    /// As [`Clip::hidden`].
    pub fn pooled(&self, ops: &O, ids: &[u32]) -> Result<O::Buffer> {
        let hidden = self.hidden(ops, ids)?;
        let mut pooled = ops.buffer(self.config.hidden)?;
        let position = pool_position(ids, self.config.eos_token_id);
        ops.copy_rows(&hidden, position, &mut pooled, 0, 1, self.config.hidden)?;
        Ok(pooled)
    }

    /// The output `[ids, hidden]` of the final norm.
    ///
    /// # Errors
    /// [`Error::BadInput`] if there are no ids, more than positions, or ids outside the vocabulary;
    /// otherwise what the device says.
    pub fn hidden(&self, ops: &O, ids: &[u32]) -> Result<O::Buffer> {
        let (len, config) = (ids.len(), &self.config);
        if !(1..=config.positions).contains(&len) {
            let limit = format!("1 to {} CLIP tokens", config.positions);
            return Err(Error::bad_input("prompt", limit, len));
        }
        let mut x = self.tokens.gather("prompt", ids)?;
        for (x, position) in x.iter_mut().zip(&self.positions) {
            *x += position;
        }
        let mut x = ops.upload(&x)?; // [len, hidden]
        let head_dim = config.hidden / config.heads;
        let shape = AttentionShape {
            batch: 1,
            len,
            heads: config.heads,
            head_dim,
        };
        for layer in &self.layers {
            layer.forward(ops, &mut x, shape)?;
        }
        self.final_norm.forward(ops, &x, len)
    }
}

impl<O: ImageOps> Layer<O> {
    fn load(ops: &O, w: &mut Weights, index: usize, config: &ClipConfig) -> Result<Self> {
        let (width, mlp, eps) = (config.hidden, config.intermediate, config.layer_norm_eps);
        let name = |part: &str| format!("text_model.encoder.layers.{index}.{part}");
        Ok(Self {
            norm1: RowNorm::load(ops, w, &name("layer_norm1"), Norm::Layer, width, eps)?,
            query: Dense::load(ops, w, &name("self_attn.q_proj"), width, width)?,
            key: Dense::load(ops, w, &name("self_attn.k_proj"), width, width)?,
            value: Dense::load(ops, w, &name("self_attn.v_proj"), width, width)?,
            out: Dense::load(ops, w, &name("self_attn.out_proj"), width, width)?,
            norm2: RowNorm::load(ops, w, &name("layer_norm2"), Norm::Layer, width, eps)?,
            fc1: Dense::load(ops, w, &name("mlp.fc1"), width, mlp)?,
            fc2: Dense::load(ops, w, &name("mlp.fc2"), mlp, width)?,
        })
    }

    fn forward(&self, ops: &O, x: &mut O::Buffer, shape: AttentionShape) -> Result<()> {
        let len = shape.len;
        let y = self.norm1.forward(ops, x, len)?;
        let q = self.query.forward(ops, &y, len)?; // [len, heads·head_dim], as are k and v
        let k = self.key.forward(ops, &y, len)?;
        let v = self.value.forward(ops, &y, len)?;
        let mut attended = y;
        let scale = libm::powf(shape.head_dim as f32, -0.5);
        ops.dense_attention(&q, &k, &v, shape, scale, None, true, &mut attended)?;
        ops.add(x, &self.out.forward(ops, &attended, len)?)?;

        let y = self.norm2.forward(ops, x, len)?;
        let mut hidden = self.fc1.forward(ops, &y, len)?; // [len, intermediate]
        ops.activate(&mut hidden, Activation::QuickGelu)?;
        ops.add(x, &self.fc2.forward(ops, &hidden, len)?)
    }
}

/// The position of the first end token; with the legacy id, of the largest id of the sequence,
/// which the end token has.
pub fn pool_position(ids: &[u32], eos: u32) -> usize {
    let end = if eos == LEGACY_EOS {
        ids.iter().copied().max().unwrap_or(eos)
    } else {
        eos
    };
    // Like an arg-max over a comparison: position 0 if there is none.
    ids.iter().position(|id| *id == end).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_at_the_first_end_token() {
        assert_eq!(pool_position(&[5, 1, 9, 9], 9), 2);
        assert_eq!(pool_position(&[5, 2, 9, 9], LEGACY_EOS), 2);
        assert_eq!(pool_position(&[5, 1], 9), 0);
    }
}
