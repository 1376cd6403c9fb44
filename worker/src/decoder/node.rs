//! A decoder node: pictures out and in.

use tokio::sync::oneshot;
use xomni_engine::{Result, text::Grid};

use crate::api::{DecodeEvent, DecodeJob, Decoder, EncodeJob, Encoder, JobStream};

/// A decoder and an encoder as one service.
#[derive(Debug)]
pub struct DecoderNode<D, E> {
    /// Develops pictures.
    pub decoder: D,
    /// Reads pictures.
    pub encoder: E,
}

impl<D: Decoder, E: Encoder> Decoder for DecoderNode<D, E> {
    async fn decode(
        &self,
        job: DecodeJob,
        codes: oneshot::Receiver<Vec<u32>>,
    ) -> Result<JobStream<DecodeEvent>> {
        self.decoder.decode(job, codes).await
    }
}

impl<D: Decoder, E: Encoder> Encoder for DecoderNode<D, E> {
    async fn encode(&self, job: EncodeJob) -> Result<(Grid, Vec<u32>)> {
        self.encoder.encode(job).await
    }
}
