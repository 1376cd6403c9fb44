//! An encoder in this process.

use std::{fmt, sync::Arc};

use tokio::sync::Semaphore;
use tracing::Span;
use xomni_engine::{Error, Result, decode::PictureEncoder, ops::ImageOps, text::Grid};

use crate::api::{EncodeJob, Encoder, worker_gone};

/// A picture encoder that reads one picture at a time.
pub struct LocalEncoder<O: ImageOps> {
    encoder: Arc<PictureEncoder<O>>,
    /// Pictures that may be here.
    places: Arc<Semaphore>,
    max_queue: usize,
    /// The one that is read.
    turn: Arc<Semaphore>,
}

impl<O: ImageOps> LocalEncoder<O> {
    /// An encoder before which `max_queue` pictures may wait.
    pub fn new(encoder: Arc<PictureEncoder<O>>, max_queue: usize) -> Self {
        let places = max_queue.saturating_add(1).min(Semaphore::MAX_PERMITS);
        Self {
            encoder,
            places: Arc::new(Semaphore::new(places)),
            max_queue,
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

impl<O: ImageOps> Encoder for LocalEncoder<O> {
    async fn encode(&self, job: EncodeJob) -> Result<(Grid, Vec<u32>)> {
        let gone = |_| worker_gone("encoder");
        let full = |_| Error::Capacity {
            what: "encoder queue",
            limit: format!("{} pictures", self.max_queue),
            needed: "one more".into(),
            retry_after: None,
        };
        let place = self.places.clone().try_acquire_owned().map_err(full)?;
        let turn = self.turn.clone().acquire_owned().await.map_err(gone)?;
        let (encoder, span) = (self.encoder.clone(), Span::current());
        let work = move || {
            // A caller that goes away frees its place only when its picture is done with.
            let _held = (place, turn);
            span.in_scope(|| encoder.encode(&job.picture))
        };
        let panicked =
            |error: tokio::task::JoinError| Err(Error::worker_lost("encoder", error.to_string()));
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(panicked)
    }
}

impl<O: ImageOps> fmt::Debug for LocalEncoder<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalEncoder")
            .field("max_queue", &self.max_queue)
            .finish_non_exhaustive()
    }
}
