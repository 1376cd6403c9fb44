//! How much a process can hold. All processes of a group compute with the same limits but for the
//! number of K/V blocks, which is the smallest of any.

use std::ops::Range;

use xomni_engine::{
    Result,
    checkpoint::BackboneConfig,
    parallel::{HeadLayout, Shard},
    schedule::SchedulerConfig,
};

use super::plan::PlanLimits;

/// Positions a K/V block.
pub const BLOCK_SIZE: usize = 16;
/// Sequences that run at once.
pub const MAX_SEQUENCES: usize = 128;
/// Rows a step: enough to keep every core busy in prefill, few enough to keep decoding smooth.
pub const MAX_ROWS: usize = 256;

/// Limits of `ranks` of a group of `size`, given memory for that many cached values: as many blocks
/// as it holds, and no more than all sequences can use.
///
/// # Errors
/// [`xomni_engine::Error::Unsupported`] for a degree that cannot work.
pub fn scheduler_config(
    config: &BackboneConfig,
    ranks: Range<usize>,
    size: usize,
    kv_values: usize,
    max_queue: usize,
) -> Result<SchedulerConfig> {
    let layout = HeadLayout::new(config);
    let mut heads = 0;
    for rank in ranks {
        let chunks = Shard::new(rank, size)?.chunks();
        heads += layout.kv_heads(&layout.query_heads(chunks)).len();
    }
    let values = 2 * config.layers * heads.max(1) * config.head_dim;
    let useful = MAX_SEQUENCES * config.max_positions.div_ceil(BLOCK_SIZE);
    Ok(SchedulerConfig {
        max_rows: MAX_ROWS,
        max_sequences: MAX_SEQUENCES,
        max_queue,
        blocks: (kv_values / (values * BLOCK_SIZE)).clamp(1, useful),
        block_size: BLOCK_SIZE,
        max_positions: config.max_positions,
        vocabulary: config.text_vocab + config.mm_vocab,
    })
}

/// Bytes of the weights in `bf16` that a rank of a group of `size` holds.
pub fn weight_bytes(config: &BackboneConfig, size: usize) -> usize {
    let (c, q) = (config.hidden, config.heads * config.head_dim);
    // Where there are fewer K/V heads than ranks, every rank holds one.
    let kv = config.kv_heads.max(size) * config.head_dim;
    let layer = c * (2 * q + 2 * kv + 3 * config.intermediate);
    let split = config.layers * layer + c * (config.text_vocab + config.image_vocab);
    // Every rank has both embedding tables.
    let whole = c * (config.text_vocab + config.mm_vocab);
    (split.div_ceil(size.max(1)) + whole) * size_of::<u16>()
}

/// What plans within these limits may refer to.
pub fn plan_limits(config: &BackboneConfig, scheduler: &SchedulerConfig) -> PlanLimits {
    PlanLimits {
        max_rows: scheduler.max_rows,
        max_sequences: scheduler.max_sequences,
        blocks: scheduler.blocks,
        block_size: scheduler.block_size,
        max_positions: scheduler.max_positions,
        vocabulary: config.text_vocab + config.mm_vocab,
    }
}
