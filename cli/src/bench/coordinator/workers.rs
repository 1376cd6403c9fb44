//! Workers that draw by the clock. They speak the real protocol: the services of a real worker
//! stand over them, and only what these would compute is made up.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};
use xomni_engine::{
    Error, Result,
    schedule::FinishReason,
    text::{Grid, Tokenizer},
};
use xomni_worker::api::{
    Backbone, DecodeEvent, DecodeJob, Decoder, EncodeJob, Encoder, GenerateJob, JobStream,
    Progress, TokenFrame,
};

use super::{drawing::Drawing, stamps::Stamps};

/// Frames or events that a slow reader may leave unread.
const UNREAD: usize = 64;

/// What is drawn at present.
#[derive(Debug)]
pub struct Run {
    /// The pictures.
    pub drawing: Drawing,
    /// When their frames were sent; streams are named by their seed.
    pub stamps: Stamps,
}

/// A backbone and a decoder. Clones are the same.
#[derive(Debug, Clone)]
pub struct Synthetic {
    /// Knows the ids of image codes.
    pub tokenizer: Arc<Tokenizer>,
    /// What is drawn at present.
    pub run: watch::Receiver<Arc<Run>>,
}

impl Backbone for Synthetic {
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>> {
        let run = self.run.borrow().clone();
        let expected = (1, 0, run.drawing.grid.tokens());
        let forced = job.outputs.iter().map(|output| output.forced.len()).sum();
        let given = (job.outputs.len(), forced, job.max_tokens);
        if given != expected {
            let limit = format!("outputs, known tokens and tokens must be {expected:?}");
            return Err(Error::bad_input("outputs", limit, format!("{given:?}")));
        }
        let (frames, stream) = mpsc::channel(UNREAD);
        // Ends with its stream.
        tokio::spawn(draw(run, self.tokenizer.clone(), job.seed, frames));
        Ok(JobStream::new(stream))
    }
}

async fn draw(
    run: Arc<Run>,
    tokenizer: Arc<Tokenizer>,
    seed: u64,
    frames: mpsc::Sender<Result<TokenFrame>>,
) {
    let drawing = &run.drawing;
    let mut ticks = interval(drawing.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for frame in 0..drawing.frames {
        let positions = drawing.positions(frame);
        let first = positions.start as u32;
        let ids = positions.map(|position| tokenizer.image_token_id(drawing.code(seed, position)));
        let last = frame + 1 == drawing.frames;
        let tokens = TokenFrame {
            output: 0,
            first,
            tokens: ids.flatten().collect(),
            log_probs: vec![],
            finished: last.then_some(FinishReason::Length),
        };
        ticks.tick().await;
        run.stamps.send(seed, frame);
        if frames.send(Ok(tokens)).await.is_err() {
            return;
        }
    }
}

impl Decoder for Synthetic {
    async fn decode(
        &self,
        job: DecodeJob,
        codes: oneshot::Receiver<Vec<u32>>,
    ) -> Result<JobStream<DecodeEvent>> {
        let drawing = self.run.borrow().drawing;
        let (events, stream) = mpsc::channel(UNREAD);
        // Ends with its stream.
        tokio::spawn(async move {
            let developed = develop(drawing, job.steps.unwrap_or(1), codes, &events).await;
            if let Err(error) = developed {
                // A reader that is gone needs no reason.
                let _ = events.send(Err(error)).await;
            }
        });
        Ok(JobStream::new(stream))
    }
}

async fn develop(
    drawing: Drawing,
    steps: usize,
    codes: oneshot::Receiver<Vec<u32>>,
    events: &mpsc::Sender<Result<DecodeEvent>>,
) -> Result<()> {
    let codes = codes.await.map_err(|_| Error::Cancelled)?;
    let denoise = (0..steps).map(|step| Progress::Denoise { step, of: steps });
    let parts = [Progress::Encode]
        .into_iter()
        .chain(denoise)
        .chain([Progress::Vae]);
    let events = |event| async { events.send(Ok(event)).await.map_err(|_| Error::Cancelled) };
    for part in parts {
        events(DecodeEvent::Progress(part)).await?;
    }
    events(DecodeEvent::Png(drawing.develop(&codes)?)).await
}

impl Encoder for Synthetic {
    async fn encode(&self, _: EncodeJob) -> Result<(Grid, Vec<u32>)> {
        Err(Error::Unsupported {
            what: "reading pictures".into(),
            reason: "these workers only draw".into(),
        })
    }
}
