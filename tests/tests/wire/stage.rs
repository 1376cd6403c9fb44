//! The two services over jobs that a test answers itself.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Mutex, mpsc, oneshot};
use tonic::{service::Routes, transport::Channel};
use xomni_engine::{
    Result,
    sampling::SamplingParams,
    schedule::{FinishReason, Mode, OutputSpec},
    text::Grid,
};
use xomni_tests::loopback::{Loopback, identity};
use xomni_worker::{
    api::{
        Backbone, DecodeEvent, DecodeJob, Decoder, EncodeJob, Encoder, GenerateJob, JobStream,
        TokenFrame,
    },
    client::{RemoteBackbone, RemoteDecoder},
    convert::Standing,
    serve::{backbone_service, decoder_service},
};

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(30);
const TOKENS: usize = 4;

pub type Frames = mpsc::Sender<Result<TokenFrame>>;
pub type Events = mpsc::Sender<Result<DecodeEvent>>;

/// A backbone whose frames the test writes.
#[derive(Debug)]
struct Scripted(mpsc::Sender<Frames>);

impl Backbone for Scripted {
    async fn generate(&self, _: GenerateJob) -> Result<JobStream<TokenFrame>> {
        let (frames, stream) = mpsc::channel(8);
        self.0.send(frames).await.expect("the test takes it");
        Ok(JobStream::new(stream))
    }
}

/// A decoder whose events the test writes, and an encoder that counts bytes.
#[derive(Debug)]
struct Darkroom(mpsc::Sender<Events>);

impl Decoder for Darkroom {
    async fn decode(
        &self,
        _: DecodeJob,
        _: oneshot::Receiver<Vec<u32>>,
    ) -> Result<JobStream<DecodeEvent>> {
        let (events, stream) = mpsc::channel(8);
        self.0.send(events).await.expect("the test takes it");
        Ok(JobStream::new(stream))
    }
}

impl Encoder for Darkroom {
    async fn encode(&self, job: EncodeJob) -> Result<(Grid, Vec<u32>)> {
        Ok((Grid::new(1, 1), vec![job.picture.len() as u32]))
    }
}

/// Both services, and the ends of their jobs that a test holds.
pub struct Stage {
    pub server: Loopback,
    pub standing: tokio::sync::watch::Sender<Standing>,
    generations: Mutex<mpsc::Receiver<Frames>>,
    developments: Mutex<mpsc::Receiver<Events>>,
}

impl Stage {
    pub fn set() -> Self {
        let (standing, identity) = identity(100);
        let (backbone, generations) = mpsc::channel(8);
        let (darkroom, developments) = mpsc::channel(8);
        let darkroom = Arc::new(Darkroom(darkroom));
        let backbone = backbone_service(Arc::new(Scripted(backbone)), identity.clone());
        let decoder = decoder_service(darkroom.clone(), darkroom, identity);
        Self {
            server: Loopback::start(Routes::new(backbone).add_service(decoder)),
            standing,
            generations: Mutex::new(generations),
            developments: Mutex::new(developments),
        }
    }

    pub fn channel(&self) -> Channel {
        self.server.channel()
    }

    /// Starts a job and returns both of its ends.
    pub async fn generate(&self, backbone: &RemoteBackbone) -> (Frames, JobStream<TokenFrame>) {
        let stream = backbone.generate(job()).await.expect("accepted");
        let frames = self.generations.lock().await.recv().await;
        (frames.expect("a generation"), stream)
    }

    /// Starts to develop a picture of two tokens and returns both ends, and where its codes are awaited.
    pub async fn develop(
        &self,
        decoder: &RemoteDecoder,
    ) -> (Events, oneshot::Sender<Vec<u32>>, JobStream<DecodeEvent>) {
        let (sender, codes) = oneshot::channel();
        let job = DecodeJob {
            request_id: "r".into(),
            attempt: 0,
            prompt: String::new(),
            grid: Grid::new(1, 2),
            seed: 0,
            image_index: 0,
            steps: None,
        };
        let stream = decoder.decode(job, codes).await.expect("accepted");
        let events = self.developments.lock().await.recv().await;
        (events.expect("a development"), sender, stream)
    }
}

pub fn job() -> GenerateJob {
    GenerateJob {
        request_id: "r".into(),
        attempt: 0,
        priority: 0,
        mode: Mode::Image,
        prompt: vec![1],
        negative_prompt: None,
        sampling: SamplingParams::GREEDY,
        seed: 0,
        outputs: vec![OutputSpec {
            image_index: 0,
            forced: vec![],
        }],
        max_tokens: TOKENS,
        stop_ids: vec![],
        deadline: None,
        log_probs: false,
    }
}

pub fn frame(tokens: std::ops::Range<u32>) -> TokenFrame {
    TokenFrame {
        output: 0,
        first: tokens.start,
        finished: (tokens.end == TOKENS as u32).then_some(FinishReason::Length),
        tokens: tokens.collect(),
        log_probs: vec![],
    }
}

pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(SOON, work).await;
    waited.unwrap_or_else(|_| panic!("never: {what}"))
}
