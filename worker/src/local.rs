//! A whole model in one process: what a directory needs to become a backbone and a decoder.

use std::{path::PathBuf, sync::Arc};

use xomni_engine::{
    Error, Result,
    checkpoint::{BackboneConfig, GenerationConfig, XOmniConfig},
    decode::{DecoderSetup, PictureDecoder, PictureEncoder, WeightsSource},
    group::{GroupConfig, ThreadGroup},
    ops::cpu::Cpu,
    parallel::{HeadLayout, Shard},
    schedule::SchedulerConfig,
    text::{ChatTemplate, Tokenizer},
};

use crate::{
    api::GenerateJob,
    backbone::{LocalBackbone, request},
    decoder::LocalDecoder,
};

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

/// A model whose configurations and tokenizers are read, and no weights: requests can be checked.
#[derive(Debug)]
pub struct PreparedModel {
    /// `config.json`.
    pub config: XOmniConfig,
    /// Sampling defaults and stop ids.
    pub generation: GenerationConfig,
    /// The backbone's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// What makes a prompt of a chat.
    pub template: Arc<ChatTemplate>,
    decoder: DecoderSetup,
    scheduler: SchedulerConfig,
    local: LocalConfig,
}

/// A model that is ready to serve.
#[derive(Debug)]
pub struct LocalModel {
    /// `config.json`.
    pub config: XOmniConfig,
    /// Sampling defaults and stop ids.
    pub generation: GenerationConfig,
    /// The backbone's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// What makes a prompt of a chat.
    pub template: Arc<ChatTemplate>,
    /// Draws tokens.
    pub backbone: LocalBackbone,
    /// Develops pictures.
    pub decoder: LocalDecoder,
    /// Reads pictures.
    pub encoder: Arc<PictureEncoder<Cpu>>,
}

impl PreparedModel {
    /// Reads the configurations and tokenizers of both directories.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming file and item, [`Error::Io`], [`Error::Unsupported`] for a
    /// degree or sizes that cannot work, or [`Error::BadInput`] for too little K/V memory.
    pub fn open(local: LocalConfig) -> Result<Self> {
        let config = XOmniConfig::open(&local.model)?;
        let scheduler = scheduler_config(&config.backbone, &local)?;
        Ok(Self {
            generation: GenerationConfig::open(&local.model, &config)?,
            tokenizer: Arc::new(Tokenizer::open(&local.model, &config)?),
            template: Arc::new(ChatTemplate::open(&local.model)?),
            decoder: DecoderSetup::open(&local.model, &local.flux, &config)?,
            scheduler,
            config,
            local,
        })
    }

    /// Refuses a job that this model can never run.
    ///
    /// # Errors
    /// [`Error::BadInput`] naming the field, its limit and the value.
    pub fn check(&self, job: GenerateJob) -> Result<()> {
        self.scheduler.check(&request(0, job))
    }

    /// Loads the weights (of every file the header first) and starts the services.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming file and item, [`Error::Io`], or [`Error::Capacity`] if there
    /// is no memory for it.
    pub fn load(self) -> Result<LocalModel> {
        let Self {
            config,
            generation,
            tokenizer,
            template,
            decoder,
            scheduler,
            local,
        } = self;
        let weights = local
            .weights
            .safetensors(&local.model, "model", "backbone")?;
        let decoder_weights = decoder.weights(local.weights)?;
        let ops = Arc::new(Cpu::new());
        let encoder = PictureEncoder::open(ops.clone(), &local.model, &config, local.weights)?;
        let group = GroupConfig {
            ranks: local.ranks,
            max_rows: scheduler.max_rows,
            blocks: scheduler.blocks,
            block_size: scheduler.block_size,
            slots: scheduler.max_sequences,
            suppressed: vec![tokenizer.som(), tokenizer.eom(), tokenizer.image_marker()],
            keep_logits: false,
        };
        let group = ThreadGroup::start(&ops, &config.backbone, weights, &group)?;
        let decoder = PictureDecoder::load(ops, decoder, decoder_weights)?;
        Ok(LocalModel {
            backbone: LocalBackbone::start(scheduler, group)?,
            decoder: LocalDecoder::start(Arc::new(decoder))?,
            encoder: Arc::new(encoder),
            config,
            generation,
            tokenizer,
            template,
        })
    }
}

impl LocalModel {
    /// Loads both directories and starts the services.
    ///
    /// # Errors
    /// As [`PreparedModel::open`] and [`PreparedModel::load`].
    pub fn open(local: LocalConfig) -> Result<Self> {
        PreparedModel::open(local)?.load()
    }
}

/// As many K/V blocks as the memory holds, and no more than all sequences can use.
fn scheduler_config(config: &BackboneConfig, local: &LocalConfig) -> Result<SchedulerConfig> {
    let values = 2 * config.layers * stored_kv_heads(config, local.ranks)? * config.head_dim;
    let block_bytes = values * BLOCK_SIZE * size_of::<f32>();
    let blocks = local.kv_bytes / block_bytes;
    if blocks == 0 {
        let limit = format!("must be at least {block_bytes} bytes, {BLOCK_SIZE} positions");
        return Err(Error::bad_input("kv_memory", limit, local.kv_bytes));
    }
    let useful = MAX_SEQUENCES * config.max_positions.div_ceil(BLOCK_SIZE);
    Ok(SchedulerConfig {
        max_rows: MAX_ROWS,
        max_sequences: MAX_SEQUENCES,
        max_queue: local.max_queue,
        blocks: blocks.min(useful),
        block_size: BLOCK_SIZE,
        max_positions: config.max_positions,
        vocabulary: config.text_vocab + config.mm_vocab,
    })
}

/// K/V heads that the ranks store together: some are stored by several.
fn stored_kv_heads(config: &BackboneConfig, ranks: usize) -> Result<usize> {
    let layout = HeadLayout::new(config);
    let stored = (0..ranks.max(1)).map(|rank| {
        let heads = layout.query_heads(Shard::new(rank, ranks)?.chunks());
        Ok(layout.kv_heads(&heads).len())
    });
    stored.sum()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn local(ranks: usize, kv_bytes: usize) -> LocalConfig {
        let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/xomni-tiny");
        LocalConfig {
            model: Path::new(tiny).join("x-omni"),
            flux: Path::new(tiny).join("flux"),
            weights: WeightsSource::Checkpoint,
            ranks,
            kv_bytes,
            max_queue: 1,
        }
    }

    #[test]
    fn replicated_heads_count_as_often_as_they_are_stored() {
        let mut config = XOmniConfig::open(&local(1, 0).model)
            .expect("config")
            .backbone;
        (config.heads, config.kv_heads) = (28, 4);
        let stored = |ranks| stored_kv_heads(&config, ranks).expect("a degree that works");
        assert_eq!([1, 2, 4, 8].map(stored), [4, 4, 4, 8]);
        assert!(stored_kv_heads(&config, 3).is_err());
    }

    #[test]
    fn too_little_memory_names_the_least() {
        let refused = PreparedModel::open(local(1, 1)).expect_err("no block");
        let Error::BadInput { field, limit, .. } = refused else {
            panic!("{refused}");
        };
        assert_eq!(field, "kv_memory");
        let least = limit.split(' ').find_map(|word| word.parse().ok());
        let least: usize = least.expect("a number of bytes");
        assert!(PreparedModel::open(local(1, least - 1)).is_err());
        let model = PreparedModel::open(local(1, least)).expect("one block");
        assert_eq!(model.scheduler.blocks, 1);
    }
}
