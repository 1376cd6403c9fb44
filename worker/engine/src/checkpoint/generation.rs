//! `generation_config.json`, applied as the published script applies it.

/// Sampling defaults of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// Temperature; 1 in the published script.
    pub temperature: f32,
    /// Candidates kept by score; 0 keeps all; 50 in the published script.
    pub top_k: usize,
    /// Nucleus mass; 1 in the published script.
    pub top_p: f32,
    /// Smallest kept probability relative to the largest; 0 keeps all; 0.03 in the published script.
    pub min_p: f32,
    /// Ids that end a text answer.
    pub stop_ids: Vec<u32>,
}
