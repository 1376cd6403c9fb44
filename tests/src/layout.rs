//! Expected pictures are channel-first, the engine's are channel-last.

/// `[positions, channels]` as `[channels, positions]`.
pub fn channels_first(values: &[f32], channels: usize) -> Vec<f32> {
    (0..channels)
        .flat_map(|channel| values.iter().skip(channel).step_by(channels))
        .copied()
        .collect()
}

/// `[channels, positions]` as `[positions, channels]`.
pub fn channels_last(values: &[f32], channels: usize) -> Vec<f32> {
    channels_first(values, values.len() / channels)
}
