//! What a caller asks of the backbone.

use std::time::Instant;

use crate::sampling::SamplingParams;

/// Names a request within one scheduler; chosen by the caller, unique among live requests.
pub type RequestId = u64;

/// Which head draws the tokens (a switch of the whole run, not of a position).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Image codes only.
    Image,
    /// Text tokens only.
    Text,
}

/// One of the `n` images (or answers) of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputSpec {
    /// Index that keys its randomness.
    pub image_index: u32,
    /// Token ids that are already drawn and only have to be replayed.
    pub forced: Vec<u32>,
}

/// A prompt and the outputs to draw from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The caller's name for it.
    pub id: RequestId,
    /// Lower runs first; equal priorities run in order of arrival.
    pub priority: i32,
    /// Image or text.
    pub mode: Mode,
    /// Token ids of the prompt, not empty.
    pub prompt: Vec<u32>,
    /// Token ids of the unconditional prompt; given exactly if the sampling is guided.
    pub negative_prompt: Option<Vec<u32>>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Key of all randomness.
    pub seed: u64,
    /// What to draw; prompt blocks are shared among them.
    pub outputs: Vec<OutputSpec>,
    /// Tokens of each output, forced ones included: exactly (image) or at most (text).
    pub max_tokens: usize,
    /// Ids that end a text answer.
    pub stop_ids: Vec<u32>,
    /// When to give up.
    pub deadline: Option<Instant>,
    /// Whether tokens come with their log-probabilities.
    pub log_probs: bool,
}
