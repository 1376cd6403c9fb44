//! What a worker offers: streams that end in a result, and that are cancelled by dropping them.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
pub use xomni_engine::decode::Progress;
use xomni_engine::{
    Error, Result,
    sampling::SamplingParams,
    schedule::{FinishReason, Mode, OutputSpec},
    text::Grid,
};

/// A prompt and the outputs to draw from it, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateJob {
    /// Names the job in logs and traces.
    pub request_id: String,
    /// Counts the attempts at this job, from 0.
    pub attempt: u32,
    /// Lower runs first.
    pub priority: i32,
    /// Image or text.
    pub mode: Mode,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Token ids of the unconditional prompt, exactly if guided.
    pub negative_prompt: Option<Vec<u32>>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Key of all randomness.
    pub seed: u64,
    /// What to draw, with tokens that are already known.
    pub outputs: Vec<OutputSpec>,
    /// Tokens of each output, known ones included: exactly (image) or at most (text).
    pub max_tokens: usize,
    /// Ids that end a text answer.
    pub stop_ids: Vec<u32>,
    /// When to give up.
    pub deadline: Option<Instant>,
    /// Whether frames carry log-probabilities.
    pub log_probs: bool,
}

/// Some consecutive tokens of one output.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenFrame {
    /// Index of the output in its job.
    pub output: usize,
    /// Number of tokens before the first of these; of no meaning if there are none.
    pub first: u32,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Natural log-probabilities, one a token, if asked for.
    pub log_probs: Vec<f32>,
    /// Set on the last frame of an output.
    pub finished: Option<FinishReason>,
}

/// A picture to develop, before its tokens are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeJob {
    /// Names the job in logs and traces.
    pub request_id: String,
    /// Counts the attempts at this job, from 0.
    pub attempt: u32,
    /// The text that the picture is drawn from.
    pub prompt: String,
    /// Size in tokens.
    pub grid: Grid,
    /// Key of the initial noise.
    pub seed: u64,
    /// Index of the picture within its request.
    pub image_index: u32,
    /// Denoising steps; the checkpoint's number if `None`.
    pub steps: Option<usize>,
}

/// A picture to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeJob {
    /// Names the job in logs and traces.
    pub request_id: String,
    /// A PNG or JPEG file.
    pub picture: Bytes,
}

/// What a decode stream carries; [`DecodeEvent::Png`] is the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeEvent {
    /// A part begins.
    Progress(Progress),
    /// The picture.
    Png(Vec<u8>),
}

/// The receiving end of a job. Dropping it cancels the job at the next step.
#[derive(Debug)]
pub struct JobStream<T>(mpsc::Receiver<Result<T>>);

impl<T> JobStream<T> {
    /// Wraps the channel that a worker sends a job's events on.
    pub fn new(receiver: mpsc::Receiver<Result<T>>) -> Self {
        Self(receiver)
    }

    /// The next event; `None` after the last. Cancel-safe.
    ///
    /// # Errors
    /// What ended the job; nothing follows it.
    pub async fn next(&mut self) -> Result<Option<T>> {
        self.0.recv().await.transpose()
    }
}

impl<T> Stream for JobStream<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        self.0.poll_recv(context)
    }
}

/// Draws tokens.
pub trait Backbone: Send + Sync + 'static {
    /// Queues a job and returns the stream of its tokens.
    ///
    /// # Errors
    /// [`Error::BadInput`] if it can never run, [`Error::Capacity`] if the queue is full.
    fn generate(
        &self,
        job: GenerateJob,
    ) -> impl Future<Output = Result<JobStream<TokenFrame>>> + Send;
}

/// Develops tokens into pictures.
pub trait Decoder: Send + Sync + 'static {
    /// Takes a job, so that its prompt can be encoded, and returns the stream of its events; the
    /// picture is developed once its image codes arrive (row by row). Dropping their sender
    /// cancels the job.
    ///
    /// # Errors
    /// [`Error::BadInput`] or [`Error::Capacity`].
    fn decode(
        &self,
        job: DecodeJob,
        codes: oneshot::Receiver<Vec<u32>>,
    ) -> impl Future<Output = Result<JobStream<DecodeEvent>>> + Send;
}

/// Reads pictures as tokens.
pub trait Encoder: Send + Sync + 'static {
    /// The grid and the image codes, row by row, of a picture.
    ///
    /// # Errors
    /// [`Error::BadInput`] for another kind of file or size, [`Error::Capacity`].
    fn encode(&self, job: EncodeJob) -> impl Future<Output = Result<(Grid, Vec<u32>)>> + Send;
}

/// The error of a job whose worker is gone.
pub(crate) fn worker_gone(what: &'static str) -> Error {
    Error::worker_lost(what, "it has stopped")
}
