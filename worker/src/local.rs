//! A whole model in one process: what a directory needs to become a backbone and a decoder.

use std::{path::PathBuf, sync::Arc};

use xomni_engine::{
    Result,
    checkpoint::{BackboneConfig, GenerationConfig, Weights, XOmniConfig},
    decode::{PictureDecoder, WeightsSource},
    group::{GroupConfig, ThreadGroup},
    ops::cpu::Cpu,
    schedule::SchedulerConfig,
    text::Tokenizer,
};

use crate::{backbone::LocalBackbone, decoder::LocalDecoder};

/// What to load, and how much of the machine to use.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The X-Omni directory.
    pub model: PathBuf,
    /// The FLUX directory.
    pub flux: PathBuf,
    /// Stored or random weights.
    pub weights: WeightsSource,
    /// Tensor-parallel degree: 1, 2, 4 or 8.
    pub ranks: usize,
    /// Memory for keys and values, in bytes, all ranks together.
    pub kv_bytes: usize,
    /// Requests that may wait.
    pub max_queue: usize,
}

/// Positions a K/V block.
const BLOCK_SIZE: usize = 16;
/// Sequences that run at once.
const MAX_SEQUENCES: usize = 128;
/// Rows a step: enough to keep every core busy in prefill, few enough to keep decoding smooth.
const MAX_ROWS: usize = 256;

/// A model that is ready to serve.
#[derive(Debug)]
pub struct LocalModel {
    /// `config.json`.
    pub config: XOmniConfig,
    /// Sampling defaults and stop ids.
    pub generation: GenerationConfig,
    /// The backbone's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Draws tokens.
    pub backbone: LocalBackbone,
    /// Develops pictures.
    pub decoder: LocalDecoder,
}

impl LocalModel {
    /// Loads both directories and starts the services.
    ///
    /// # Errors
    /// [`xomni_engine::Error::Checkpoint`] naming file and item, [`xomni_engine::Error::Io`], or a
    /// degree that cannot work.
    pub fn open(local: &LocalConfig) -> Result<Self> {
        let config = XOmniConfig::open(&local.model)?;
        let generation = GenerationConfig::open(&local.model, &config)?;
        let tokenizer = Arc::new(Tokenizer::open(&local.model, &config)?);
        let ops = Arc::new(Cpu::new());
        let scheduler = scheduler_config(&config.backbone, local);
        let weights = match local.weights {
            WeightsSource::Checkpoint => Weights::open_safetensors(&local.model, "model")?,
            WeightsSource::Random(seed) => Weights::random(seed, "backbone"),
        };
        let group = GroupConfig {
            ranks: local.ranks,
            max_rows: scheduler.max_rows,
            blocks: scheduler.blocks,
            block_size: scheduler.block_size,
            suppressed: vec![tokenizer.som(), tokenizer.eom(), tokenizer.image_marker()],
            keep_logits: false,
        };
        let group = ThreadGroup::start(&ops, &config.backbone, weights, &group)?;
        let decoder = PictureDecoder::open(ops, &local.model, &local.flux, &config, local.weights)?;
        Ok(Self {
            backbone: LocalBackbone::start(scheduler, group)?,
            decoder: LocalDecoder::start(Arc::new(decoder))?,
            config,
            generation,
            tokenizer,
        })
    }
}

/// As many K/V blocks as the memory holds, and no more than all sequences can use.
fn scheduler_config(config: &BackboneConfig, local: &LocalConfig) -> SchedulerConfig {
    let values = 2 * config.layers * config.kv_heads * config.head_dim;
    let block_bytes = values * BLOCK_SIZE * size_of::<f32>();
    let useful = MAX_SEQUENCES * config.max_positions.div_ceil(BLOCK_SIZE);
    SchedulerConfig {
        max_rows: MAX_ROWS,
        max_sequences: MAX_SEQUENCES,
        max_queue: local.max_queue,
        blocks: (local.kv_bytes / block_bytes).clamp(1, useful),
        block_size: BLOCK_SIZE,
        max_positions: config.max_positions,
    }
}
