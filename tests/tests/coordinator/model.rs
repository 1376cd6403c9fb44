//! The tiny model in this process, and workers over it that fail on request.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{mpsc, oneshot};
use xomni_cluster::record::{Load, Role, WorkerRecord, WorkerState};
use xomni_coordinator::{
    pipeline::{Image, ImageEvent, Pipeline},
    pool::Connect,
    request::{ImageJob, ImageRequest, Limits},
};
use xomni_engine::{Error, Result, decode::WeightsSource};
use xomni_proto::PROTOCOL_VERSION;
use xomni_tests::golden::Fixture;
use xomni_worker::{
    api::{Backbone, DecodeEvent, DecodeJob, Decoder, GenerateJob, JobStream, TokenFrame},
    local::{LocalConfig, LocalModel},
};

/// Clones are the same model.
#[derive(Clone)]
pub struct Tiny(pub Arc<LocalModel>);

impl Tiny {
    pub fn open() -> Self {
        let fixture = Fixture::open();
        let model = LocalModel::open(LocalConfig {
            model: fixture.x_omni(),
            flux: fixture.flux(),
            weights: WeightsSource::Checkpoint,
            ranks: 1,
            kv_bytes: 64 << 20,
            max_queue: 64,
        });
        Self(Arc::new(model.expect("model")))
    }

    pub fn limits(&self) -> Limits {
        Limits::new(&self.0.config, &self.0.generation)
    }

    /// A job as a client's request becomes one.
    pub fn job(&self, prompt: &str, size: &str, n: usize) -> ImageJob {
        let request = ImageRequest {
            prompt: prompt.into(),
            size: Some(size.into()),
            n: Some(n),
            seed: Some(7),
            num_inference_steps: Some(3),
            ..ImageRequest::default()
        };
        request.validate(&self.limits()).expect("valid")
    }

    /// What one process draws.
    pub async fn draw(&self, job: ImageJob) -> Vec<Image> {
        draw(self.clone(), self.clone(), self, job).await
    }
}

/// Draws a job over these services.
pub async fn draw<B: Backbone, D: Decoder>(
    backbone: B,
    decoder: D,
    model: &Tiny,
    job: ImageJob,
) -> Vec<Image> {
    let (events, mut inbox) = mpsc::channel(1024);
    let pipeline = Pipeline::new(model.0.tokenizer.clone(), backbone, Arc::new(decoder));
    let collect = async {
        let mut images = vec![];
        while let Some(event) = inbox.recv().await {
            if let ImageEvent::Done(image) = event {
                images.push(image);
            }
        }
        images
    };
    let (drawn, mut images) = tokio::join!(pipeline.draw(job, events), collect);
    drawn.expect("drawn");
    images.sort_by_key(|image| image.index);
    images
}

impl Backbone for Tiny {
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>> {
        self.0.backbone.generate(job).await
    }
}

impl Decoder for Tiny {
    async fn decode(
        &self,
        job: DecodeJob,
        codes: oneshot::Receiver<Vec<u32>>,
    ) -> Result<JobStream<DecodeEvent>> {
        self.0.decoder.decode(job, codes).await
    }
}

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

/// The record of a ready group's leader, or of a decoder where there is no epoch.
pub fn record(id: &str, address: &str, epoch: Option<u64>) -> WorkerRecord {
    let role = match epoch {
        Some(epoch) => Role::Backbone {
            group: id.into(),
            first_rank: 0,
            ranks: 1,
            group_size: 1,
            epoch,
        },
        None => Role::Decoder,
    };
    WorkerRecord {
        id: id.into(),
        address: address.into(),
        protocol_version: PROTOCOL_VERSION,
        model: "tiny".into(),
        fingerprint: "f".into(),
        state: WorkerState::Ready,
        role,
        load: Load::default(),
    }
}
