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

/// Limits of `ranks` of a group of `size`, given memory for keys and values in bytes: as many
/// blocks as it holds, and no more than all sequences can use.
///
/// # Errors
/// [`xomni_engine::Error::Unsupported`] for a degree that cannot work.
pub fn scheduler_config(
    config: &BackboneConfig,
    ranks: Range<usize>,
    size: usize,
    kv_bytes: usize,
    max_queue: usize,
) -> Result<SchedulerConfig> {
    let layout = HeadLayout::new(config);
    let mut heads = 0;
    for rank in ranks {
        let chunks = Shard::new(rank, size)?.chunks();
        heads += layout.kv_heads(&layout.query_heads(chunks)).len();
    }
    let values = 2 * config.layers * heads.max(1) * config.head_dim;
    let block_bytes = values * BLOCK_SIZE * size_of::<f32>();
    let useful = MAX_SEQUENCES * config.max_positions.div_ceil(BLOCK_SIZE);
    Ok(SchedulerConfig {
        max_rows: MAX_ROWS,
        max_sequences: MAX_SEQUENCES,
        max_queue,
        blocks: (kv_bytes / block_bytes).clamp(1, useful),
        block_size: BLOCK_SIZE,
        max_positions: config.max_positions,
    })
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
