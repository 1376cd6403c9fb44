//! A decoder on a thread of this process: one picture at a time, in order of arrival.

use std::{ops::ControlFlow, sync::Arc, thread::JoinHandle};

use tokio::sync::{mpsc, oneshot};
use xomni_engine::{
    Error, Result,
    decode::{DecodeSpec, PictureDecoder},
    ops::ImageOps,
    picture::png,
};

use crate::api::{DecodeEvent, DecodeJob, Decoder, JobStream, worker_gone};

/// Jobs that may wait.
const QUEUE: usize = 1024;
/// Progress events that a slow reader may leave unread; more are dropped, the picture never is.
const EVENTS_IN_FLIGHT: usize = 64;

type Job = (DecodeSpec, mpsc::Sender<Result<DecodeEvent>>);

/// A picture decoder and its queue. Dropping it ends the queue and joins the thread.
#[derive(Debug)]
pub struct LocalDecoder {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl LocalDecoder {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if the system gives no thread.
    pub fn start<O: ImageOps>(decoder: Arc<PictureDecoder<O>>) -> Result<Self> {
        let (jobs, mut inbox) = mpsc::channel::<Job>(QUEUE);
        let work = move || {
            while let Some((spec, events)) = inbox.blocking_recv() {
                run(&decoder, &spec, &events);
            }
        };
        let thread = std::thread::Builder::new()
            .name("decoder".into())
            .spawn(work)
            .map_err(|error| Error::GroupLost(format!("no thread for the decoder: {error}")))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }
}

fn run<O: ImageOps>(
    decoder: &PictureDecoder<O>,
    spec: &DecodeSpec,
    events: &mpsc::Sender<Result<DecodeEvent>>,
) {
    let mut progress = |part| {
        if events.is_closed() {
            return ControlFlow::Break(());
        }
        if events.capacity() > 1 {
            let _ = events.try_send(Ok(DecodeEvent::Progress(part)));
        }
        ControlFlow::Continue(())
    };
    let picture = decoder.decode(spec, &mut progress);
    let png = picture
        .and_then(|picture| png::encode(&picture))
        .map(DecodeEvent::Png);
    // The last place in the channel is the picture's; a reader that is gone needs none.
    let _ = events.blocking_send(png);
}

impl Decoder for LocalDecoder {
    async fn decode(
        &self,
        job: DecodeJob,
        codes: oneshot::Receiver<Vec<u32>>,
    ) -> Result<JobStream<DecodeEvent>> {
        let (events, stream) = mpsc::channel(EVENTS_IN_FLIGHT);
        let jobs = self.jobs.clone().ok_or_else(|| worker_gone("decoder"))?;
        let place = jobs.try_reserve_owned().map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::Capacity {
                what: "decoder queue",
                limit: format!("{QUEUE} pictures"),
                needed: "one more".into(),
            },
            mpsc::error::TrySendError::Closed(_) => worker_gone("decoder"),
        })?;
        // Ends with the codes or with their sender, which the caller holds.
        tokio::spawn(async move {
            if let Ok(tokens) = codes.await {
                place.send((spec(job, tokens), events));
            }
        });
        Ok(JobStream::new(stream))
    }
}

fn spec(job: DecodeJob, tokens: Vec<u32>) -> DecodeSpec {
    DecodeSpec {
        prompt: job.prompt,
        grid: job.grid,
        tokens,
        seed: job.seed,
        image_index: job.image_index,
        steps: job.steps,
    }
}

impl Drop for LocalDecoder {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
