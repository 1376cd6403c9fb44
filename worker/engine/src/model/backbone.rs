//! The X-Omni backbone: a Qwen2 decoder whose first and last layers change image positions only,
//! with two embeddings, two final norms and two heads (arXiv 2507.22058).

use std::{ops::Range, sync::Arc};

use crate::{
    Result,
    checkpoint::{BackboneConfig, Weights},
    ops::{Device, KvLayout, Residual, RmsNorm, StepLimits, StepRows, TransformerOps},
    parallel::{
        Collective, HeadLayout, Shard,
        layout::even_chunk,
        linear::{ColumnParallel, GatedParallel, RowParallel, SumBuffers},
        vocabulary::{VocabularyEmbedding, VocabularyHead},
    },
    schedule::Mode,
};

/// What an observer of [`Backbone::forward`] is shown: hidden states `[rows, hidden]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The input embeddings.
    Embedding,
    /// The output of a layer, by index.
    Layer(usize),
}

/// Called with every stage and its hidden states.
pub type Observer<'a> = dyn FnMut(Stage, Vec<f32>) + 'a;

struct Layer<O: TransformerOps> {
    input_norm: O::Vector,
    qkv: ColumnParallel<O>,
    o: RowParallel<O>,
    post_norm: O::Vector,
    gate_up: GatedParallel<O>,
    down: RowParallel<O>,
    /// Adapter and head layers leave text positions as they were.
    multimodal_only: bool,
}

/// The residual stream and what blocks read of it.
struct Stream<O: Device> {
    /// Residual stream `[rows, hidden]`.
    h: O::Buffer,
    /// Normalised input of a block `[rows, hidden]`.
    x: O::Buffer,
    hidden: usize,
    eps: f32,
}

impl<O: TransformerOps> Stream<O> {
    /// Where a block adds, and the norm of the block that follows, if one does.
    fn residual<'a>(
        &'a mut self,
        rows: &'a O::Rows,
        multimodal_only: bool,
        norm: Option<&'a O::Vector>,
    ) -> Residual<'a, O> {
        Residual {
            h: &mut self.h,
            rows,
            width: self.hidden,
            multimodal_only,
            norm: norm.map(|weight| RmsNorm {
                weight,
                eps: self.eps,
                out: &mut self.x,
            }),
        }
    }
}

/// Activations of a step, `rows` being the most rows of a step.
struct Scratch<O: Device> {
    stream: Stream<O>,
    /// `[rows, (heads + 2 kv_heads) head_dim]` of this rank.
    qkv: O::Buffer,
    /// `[rows, heads head_dim]` of this rank.
    attended: O::Buffer,
    /// `[rows, 2 intermediate]` of this rank.
    gate_up: O::Buffer,
    /// `[rows, intermediate]` of this rank.
    activated: O::Buffer,
    /// Final-normed picked rows `[rows, hidden]`.
    normed: O::Buffer,
    sums: SumBuffers<O>,
}

/// One rank's share of the backbone.
pub struct Backbone<O: TransformerOps> {
    ops: Arc<O>,
    config: BackboneConfig,
    collective: Box<dyn Collective<O>>,
    query_heads: Range<usize>,
    kv_heads: Range<usize>,
    /// The K/V head of each query head, both counted from this rank's first.
    kv_head_of: Vec<usize>,
    embedding: VocabularyEmbedding<O>,
    layers: Vec<Layer<O>>,
    text_norm: O::Vector,
    image_norm: O::Vector,
    text_head: VocabularyHead<O>,
    image_head: VocabularyHead<O>,
    scratch: Scratch<O>,
    max_rows: usize,
}

impl<O: TransformerOps> Backbone<O> {
    /// Takes this rank's part of every tensor. `max_rows` is the most rows of a step.
    ///
    /// # Errors
    /// [`crate::Error::Checkpoint`] naming a missing or misshaped tensor.
    pub fn load(
        ops: Arc<O>,
        shard: Shard,
        collective: Box<dyn Collective<O>>,
        config: &BackboneConfig,
        weights: &mut Weights,
        max_rows: usize,
    ) -> Result<Self> {
        let heads = HeadLayout::new(config);
        let query_heads = heads.query_heads(shard.chunks());
        let kv_heads = heads.kv_heads(&query_heads);
        let hidden = config.hidden;
        let layers = (0..config.layers)
            .map(|index| load_layer(&*ops, shard, config, &heads, weights, index))
            .collect::<Result<Vec<_>>>()?;
        let text_table =
            weights.tensor("model.lm_embed_tokens.weight", &[config.text_vocab, hidden])?;
        let image_table =
            weights.tensor("model.mm_embed_tokens.weight", &[config.mm_vocab, hidden])?;
        let text_head = weights.tensor("lm_head.weight", &[config.text_vocab, hidden])?;
        let image_head = weights.tensor("mm_head.weight", &[config.mm_vocab, hidden])?;
        let first_kv = kv_heads.start;
        let kv_head_of = query_heads
            .clone()
            .map(|h| heads.kv_head_of(h) - first_kv)
            .collect();
        let intermediate = layers[0].gate_up.width();
        let ranks = shard.size();
        // Sums, and what products read.
        let buffer = |width: usize| ops.buffer(max_rows * width);
        let activations = |width: usize| ops.activations(max_rows * width);
        let scratch = Scratch {
            stream: Stream {
                h: buffer(hidden)?,
                x: activations(hidden)?,
                hidden,
                eps: config.rms_norm_eps,
            },
            qkv: buffer((query_heads.len() + 2 * kv_heads.len()) * config.head_dim)?,
            attended: activations(query_heads.len() * config.head_dim)?,
            gate_up: activations(2 * intermediate)?,
            activated: activations(intermediate)?,
            normed: activations(hidden)?,
            sums: SumBuffers::new(&*ops, max_rows * hidden, ranks)?,
        };
        let head = |weight, vocab| VocabularyHead::load(&*ops, shard, weight, vocab, max_rows);
        Ok(Self {
            config: config.clone(),
            collective,
            query_heads,
            kv_heads,
            kv_head_of,
            embedding: VocabularyEmbedding::load(&*ops, text_table, image_table)?,
            layers,
            text_norm: ops.vector(&[weights.tensor("model.lm_norm.weight", &[hidden])?])?,
            image_norm: ops.vector(&[weights.tensor("model.mm_norm.weight", &[hidden])?])?,
            text_head: head(text_head, config.text_vocab)?,
            image_head: head(image_head, config.image_vocab)?,
            scratch,
            max_rows,
            ops,
        })
    }

    /// Exchanges through `collective`, a group of the same size, from here on.
    pub fn set_collective(&mut self, collective: Box<dyn Collective<O>>) {
        self.collective = collective;
    }

    /// Number of ranks of the group.
    pub fn group_size(&self) -> usize {
        self.collective.size()
    }

    /// A K/V cache for this rank's heads: `blocks` blocks of `block_size` positions.
    pub fn kv_cache(&self, blocks: usize, block_size: usize) -> Result<O::Kv> {
        self.ops.kv_cache(KvLayout {
            layers: self.config.layers,
            kv_heads: self.kv_heads.len(),
            head_dim: self.config.head_dim,
            blocks,
            block_size,
        })
    }

    /// Room for the rows of steps over `slots` sequences, whose K/V blocks have `block_size` positions.
    pub fn rows(&self, slots: usize, block_size: usize) -> Result<O::Rows> {
        self.ops.rows(&StepLimits {
            max_rows: self.max_rows,
            slots,
            max_positions: self.config.max_positions,
            block_size,
            text_vocab: self.config.text_vocab,
            window: self.config.sliding_window,
            kv_heads: self.kv_heads.len(),
        })
    }

    /// Runs the rows of a step through all layers, writing their keys and values to `kv`. The
    /// hidden states stay here for [`Backbone::logits`].
    pub fn forward(
        &mut self,
        rows: &O::Rows,
        kv: &mut O::Kv,
        mut observer: Option<&mut Observer<'_>>,
    ) -> Result<()> {
        let ops = &*self.ops;
        let config = &self.config;
        let collective = &mut *self.collective;
        let s = &mut self.scratch;
        let n = rows.len();
        let mut observe = |stage, h: &O::Buffer| match &mut observer {
            Some(observer) => ops.read(h, n * config.hidden).map(|h| observer(stage, h)),
            None => Ok(()),
        };

        let norm = Some(&self.layers[0].input_norm);
        let to = s.stream.residual(rows, false, norm);
        self.embedding.forward(ops, rows, to)?;
        observe(Stage::Embedding, &s.stream.h)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let multimodal_only = layer.multimodal_only;
            if !self.query_heads.is_empty() {
                layer.qkv.forward(ops, &s.stream.x, n, &mut s.qkv)?;
                let (theta, window) = (config.rope_theta, config.sliding_window);
                ops.append_and_attend(
                    &mut s.qkv,
                    rows,
                    &self.kv_head_of,
                    theta,
                    window,
                    index,
                    kv,
                    layer.gate_up.weight(),
                    &mut s.attended,
                )?;
            }
            let norm = Some(&layer.post_norm);
            let to = s.stream.residual(rows, multimodal_only, norm);
            layer
                .o
                .forward(ops, collective, &mut s.sums, &s.attended, to)?;

            layer
                .gate_up
                .forward(ops, &s.stream.x, n, &mut s.gate_up, &mut s.activated)?;
            let norm = self.layers.get(index + 1).map(|next| &next.input_norm);
            let to = s.stream.residual(rows, multimodal_only, norm);
            layer
                .down
                .forward(ops, collective, &mut s.sums, &s.activated, to)?;
            observe(Stage::Layer(index), &s.stream.h)?;
        }
        Ok(())
    }

    /// Final-normed hidden states `[picked, hidden]` of the rows of the last step that are picked for
    /// `mode`.
    pub fn final_norm(&mut self, rows: &O::Rows, mode: Mode) -> Result<&O::Buffer> {
        let (s, weights) = (&mut self.scratch, (&self.text_norm, &self.image_norm));
        let eps = self.config.rms_norm_eps;
        self.ops
            .final_norm(&s.stream.h, weights, rows, mode, eps, &mut s.normed)?;
        Ok(&s.normed)
    }

    /// Logits `[picked, vocab(mode)]` of the rows of the last step that are picked for `mode`: all
    /// image codes, or all text tokens. No other token can be drawn in that mode.
    pub fn logits(&mut self, rows: &O::Rows, mode: Mode) -> Result<&O::Buffer> {
        self.final_norm(rows, mode)?;
        let head = match mode {
            Mode::Image => &mut self.image_head,
            Mode::Text => &mut self.text_head,
        };
        let (collective, normed) = (&mut *self.collective, &self.scratch.normed);
        head.forward(&self.ops, collective, normed, rows.picked(mode))
    }

    /// Draws what `rows` draw for `mode` from the last step; `suppressed` tokens are never drawn.
    pub fn sample(&mut self, rows: &mut O::Rows, mode: Mode, suppressed: &[u32]) -> Result<()> {
        let (vocab, ops) = (self.vocabulary(mode), self.ops.clone());
        let logits = self.logits(rows, mode)?;
        ops.sample(logits, vocab, suppressed, mode, rows)
    }

    /// Reads the logits of `mode` that were computed last, `rows` rows of them.
    pub fn read_logits(&self, mode: Mode, rows: usize) -> Result<Vec<f32>> {
        let head = match mode {
            Mode::Image => &self.image_head,
            Mode::Text => &self.text_head,
        };
        self.ops.read(head.logits(), rows * head.vocab())
    }

    /// Whether a step does nothing but operations of the device.
    pub fn replayable(&self) -> bool {
        self.collective.on_device()
    }

    /// Waits until the oldest step of `rows` that was not collected has ended, as far as other ranks
    /// have a part in that.
    ///
    /// # Errors
    /// [`crate::Error::GroupLost`] if one of them is gone or overdue.
    pub fn wait(&mut self, rows: &O::Rows) -> Result<()> {
        self.collective.wait(&mut || rows.ended())
    }

    /// Ends the exchange with other ranks, so that nothing waits for them.
    pub fn abort(&mut self) {
        self.collective.abort();
    }

    /// Tokens that a mode can draw, and the id of the first of them.
    pub fn vocabulary(&self, mode: Mode) -> Range<u32> {
        let text = self.config.text_vocab as u32;
        match mode {
            Mode::Text => 0..text,
            Mode::Image => text..text + self.config.image_vocab as u32,
        }
    }

    /// The device's operations.
    pub fn ops(&self) -> &O {
        &self.ops
    }

    /// The device's operations, to keep.
    pub fn shared_ops(&self) -> Arc<O> {
        self.ops.clone()
    }

    /// The most rows of a step.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Sizes and constants.
    pub fn config(&self) -> &BackboneConfig {
        &self.config
    }
}

fn load_layer<O: TransformerOps>(
    ops: &O,
    shard: Shard,
    config: &BackboneConfig,
    heads: &HeadLayout,
    weights: &mut Weights,
    index: usize,
) -> Result<Layer<O>> {
    let (c, d, i) = (config.hidden, config.head_dim, config.intermediate);
    let (q, kv) = (config.heads * d, config.kv_heads * d);
    let mut tensor = |name: &str, shape: &[usize]| {
        weights.tensor(&format!("model.layers.{index}.{name}"), shape)
    };
    let channels = |heads: Range<usize>| heads.start * d..heads.end * d;
    let chunks = shard.chunks();
    let query_heads = heads.query_heads(chunks.clone());
    let kv_heads = channels(heads.kv_heads(&query_heads));
    let query_heads = channels(query_heads);
    let head_chunks: Vec<_> = chunks
        .clone()
        .map(|chunk| channels(heads.query_heads(chunk..chunk + 1)))
        .collect();
    let mlp_chunks: Vec<_> = chunks.map(|chunk| even_chunk(i, chunk)).collect();
    let mlp = mlp_chunks[0].start..mlp_chunks[mlp_chunks.len() - 1].end;
    let qkv = ColumnParallel::load_narrow(
        ops,
        &[
            (
                tensor("self_attn.q_proj.weight", &[q, c])?,
                query_heads.clone(),
            ),
            (
                tensor("self_attn.k_proj.weight", &[kv, c])?,
                kv_heads.clone(),
            ),
            (
                tensor("self_attn.v_proj.weight", &[kv, c])?,
                kv_heads.clone(),
            ),
        ],
        &[
            (tensor("self_attn.q_proj.bias", &[q])?, query_heads),
            (tensor("self_attn.k_proj.bias", &[kv])?, kv_heads.clone()),
            (tensor("self_attn.v_proj.bias", &[kv])?, kv_heads),
        ],
    )?;
    let gate_up = GatedParallel::load(
        ops,
        tensor("mlp.gate_proj.weight", &[i, c])?,
        tensor("mlp.up_proj.weight", &[i, c])?,
        mlp,
    )?;
    let first_head_layer = config.layers - config.head_layers;
    Ok(Layer {
        input_norm: ops.vector(&[tensor("input_layernorm.weight", &[c])?])?,
        qkv,
        o: RowParallel::load(
            ops,
            tensor("self_attn.o_proj.weight", &[c, q])?,
            &head_chunks,
        )?,
        post_norm: ops.vector(&[tensor("post_attention_layernorm.weight", &[c])?])?,
        gate_up,
        down: RowParallel::load(ops, tensor("mlp.down_proj.weight", &[c, i])?, &mlp_chunks)?,
        multimodal_only: index < config.adapter_layers || index >= first_head_layer,
    })
}
