//! The plan of one step: plain data, identical on every rank.

use std::sync::Arc;

use super::request::Mode;
use crate::sampling::SamplingParams;

/// Names a sequence (one stream of positions with a K/V cache of its own) on the device.
pub type Slot = u32;

/// Where a row's token comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    /// Known to the host.
    Known(u32),
    /// The last token drawn for the row's slot; it never has to leave the device.
    Drawn,
}

/// One position of one sequence to run through the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The sequence.
    pub slot: Slot,
    /// Its position, from 0.
    pub position: u32,
    /// Its token.
    pub token: TokenSource,
}

/// How the draws of a slot are made.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawSetup {
    /// Settings.
    pub params: SamplingParams,
    /// Seed of the request.
    pub seed: u64,
    /// Index of the output within its request.
    pub image_index: u32,
    /// Whether the log-probabilities of its tokens are wanted.
    pub log_prob: bool,
}

/// A sequence that begins with this step.
#[derive(Debug, Clone, PartialEq)]
pub struct Admission {
    /// Its slot; whatever the slot held before is gone.
    pub slot: Slot,
    /// Its K/V blocks in order of position, enough for its whole length.
    pub table: Arc<[u32]>,
    /// Image or text.
    pub mode: Mode,
    /// How to draw from it; `None` for an unconditional sequence.
    pub draw: Option<DrawSetup>,
}

/// A row whose logits a token is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Index of the row in the step; its slot receives the token.
    pub row: u32,
    /// Index of the unconditional row, if guided; its slot receives the token too.
    pub uncond_row: Option<u32>,
    /// Number of tokens drawn before this one.
    pub n: u32,
}

/// One pass through the network. First the keys and values of all rows are written, then every
/// row attends to its own sequence up to its own position.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Step {
    /// Counts the steps of a scheduler.
    pub id: u64,
    /// Sequences that begin.
    pub admissions: Vec<Admission>,
    /// What to run.
    pub rows: Vec<Row>,
    /// What to draw.
    pub samples: Vec<Sample>,
}
