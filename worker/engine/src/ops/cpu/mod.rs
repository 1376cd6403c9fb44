//! The CPU backend: `f32` arithmetic over weights in their stored type.

/// Positions of one attention split.
pub const KV_SPLIT: usize = 256;
