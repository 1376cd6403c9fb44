//! The tiny model in this process, and what the membership says of workers that serve it.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use xomni_cluster::record::{Load, Role, WorkerRecord, WorkerState};
use xomni_coordinator::{
    pipeline::{Image, ImageEvent, Pipeline},
    request::{ChatModel, ImageJob, ImageRequest, Limits},
};
use xomni_engine::{Result, decode::WeightsSource, text::Grid};
use xomni_proto::PROTOCOL_VERSION;
use xomni_worker::{
    api::{
        Backbone, DecodeEvent, DecodeJob, Decoder, EncodeJob, Encoder, GenerateJob, JobStream,
        TokenFrame,
    },
    decoder::LocalEncoder,
    local::{LocalConfig, LocalModel},
};

use crate::golden::Fixture;

/// Clones are the same model.
#[derive(Debug, Clone)]
pub struct Tiny(pub Arc<LocalModel>);

impl Tiny {
    /// The fixture's model, loaded.
    ///
    /// # Panics
    /// If it cannot be.
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

    /// What it can draw.
    pub fn limits(&self) -> Limits {
        Limits::new(&self.0.config, &self.0.generation)
    }

    /// What it makes of chats.
    pub fn chat(&self) -> Arc<ChatModel> {
        let LocalModel {
            config,
            generation,
            tokenizer,
            template,
            ..
        } = &*self.0;
        let (tokenizer, template) = (tokenizer.clone(), template.clone());
        Arc::new(ChatModel::new(config, generation, tokenizer, template))
    }

    /// A job as a client's request becomes one.
    ///
    /// # Panics
    /// If the request is refused.
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
///
/// # Panics
/// If that fails.
pub async fn draw<B: Backbone, D: Decoder>(
    backbone: B,
    decoder: D,
    model: &Tiny,
    job: ImageJob,
) -> Vec<Image> {
    let (events, mut inbox) = mpsc::channel(1024);
    let pipeline = Pipeline::new(model.chat(), backbone, Arc::new(decoder));
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

impl Encoder for Tiny {
    async fn encode(&self, job: EncodeJob) -> Result<(Grid, Vec<u32>)> {
        let encoder = LocalEncoder::new(self.0.encoder.clone(), 64);
        encoder.encode(job).await
    }
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
