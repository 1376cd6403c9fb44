//! Workers over the tiny model that fail on request.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{mpsc, oneshot};
use xomni_cluster::record::WorkerRecord;
use xomni_coordinator::pool::Connect;
use xomni_engine::{Error, Result, text::Grid};
use xomni_tests::tiny::Tiny;
use xomni_worker::api::{
    Backbone, DecodeEvent, DecodeJob, Decoder, EncodeJob, Encoder, GenerateJob, JobStream,
    TokenFrame,
};

/// How a worker fails a job.
#[derive(Debug, Clone, Copy)]
pub enum Failure {
    /// It does not take it.
    Refuses,
    /// It has no room for it.
    IsFull,
    /// Its stream fails after so many events.
    FailsAfter(usize),
    /// Its stream ends after so many events.
    EndsAfter(usize),
    /// Its stream is silent after so many events.
    HangsAfter(usize),
}

/// Reaches workers that are all the same model; each job that is taken fails as the script's next
/// entry says, and works once the script is at its end.
#[derive(Clone)]
pub struct Flaky {
    model: Tiny,
    script: Arc<Mutex<VecDeque<Failure>>>,
    /// Jobs asked for.
    pub jobs: Arc<AtomicUsize>,
}

impl Flaky {
    pub fn new(model: &Tiny, script: impl IntoIterator<Item = Failure>) -> Self {
        Self {
            model: model.clone(),
            script: Arc::new(Mutex::new(script.into_iter().collect())),
            jobs: Arc::default(),
        }
    }

    fn next(&self) -> Result<Option<Failure>> {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        match self.script.lock().expect("script").pop_front() {
            Some(Failure::Refuses) => Err(Error::worker_lost("test", "refused")),
            Some(Failure::IsFull) => Err(Error::Capacity {
                what: "queue",
                limit: "0".into(),
                needed: "1".into(),
                retry_after: None,
            }),
            other => Ok(other),
        }
    }
}

impl Connect for Flaky {
    type Service = Self;

    fn connect(&self, _: &WorkerRecord) -> Self {
        self.clone()
    }
}

impl Backbone for Flaky {
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>> {
        let failure = self.next()?;
        Ok(failing(self.model.generate(job).await?, failure))
    }
}

impl Decoder for Flaky {
    async fn decode(
        &self,
        job: DecodeJob,
        codes: oneshot::Receiver<Vec<u32>>,
    ) -> Result<JobStream<DecodeEvent>> {
        let failure = self.next()?;
        Ok(failing(self.model.decode(job, codes).await?, failure))
    }
}

impl Encoder for Flaky {
    async fn encode(&self, job: EncodeJob) -> Result<(Grid, Vec<u32>)> {
        match self.next()? {
            None => self.model.encode(job).await,
            Some(failure) => Err(Error::worker_lost("test", format!("{failure:?}"))),
        }
    }
}

/// A stream that fails as told.
fn failing<T: Send + 'static>(mut stream: JobStream<T>, failure: Option<Failure>) -> JobStream<T> {
    let Some(failure) = failure else {
        return stream;
    };
    let (events, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let (Failure::FailsAfter(count) | Failure::EndsAfter(count) | Failure::HangsAfter(count)) =
            failure
        else {
            return;
        };
        for _ in 0..count {
            let event = stream.next().await.transpose();
            let Some(event) = event else { return };
            if events.send(event).await.is_err() {
                return;
            }
        }
        match failure {
            Failure::HangsAfter(_) => events.closed().await,
            Failure::FailsAfter(_) => {
                let _ = events.send(Err(Error::GroupLost("test".into()))).await;
            }
            _ => {}
        }
    });
    JobStream::new(receiver)
}
