//! A decoder on a thread of this process: one picture at a time, in order of arrival.

use std::{ops::ControlFlow, sync::Arc, thread::JoinHandle};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use xomni_engine::{
    Error, Result,
    decode::{DecodeSpec, PictureDecoder},
    ops::ImageOps,
    picture::png,
};

use crate::api::{DecodeEvent, DecodeJob, Decoder, JobStream, worker_gone};

/// Pictures whose tokens are known that may wait here; the tokens of others wait with their callers.
const QUEUE: usize = 1024;
/// Progress events that a slow reader may leave unread; more are dropped, the picture never is.
const EVENTS_IN_FLIGHT: usize = 64;

struct Job {
    spec: DecodeSpec,
    events: mpsc::Sender<Result<DecodeEvent>>,
    _place: OwnedSemaphorePermit,
}

/// A picture decoder and its queue. Dropping it ends the queue and joins the thread.
#[derive(Debug)]
pub struct LocalDecoder {
    /// As long as the places allow.
    jobs: Option<mpsc::UnboundedSender<Job>>,
    places: Arc<Semaphore>,
    thread: Option<JoinHandle<()>>,
}

impl LocalDecoder {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] if the system gives no thread.
    pub fn start<O: ImageOps>(decoder: Arc<PictureDecoder<O>>) -> Result<Self> {
        let (jobs, mut inbox) = mpsc::unbounded_channel::<Job>();
        let work = move || {
            while let Some(job) = inbox.blocking_recv() {
                run(&decoder, &job.spec, &job.events);
            }
        };
        let thread = std::thread::Builder::new()
            .name("decoder".into())
            .spawn(work)
            .map_err(|error| Error::worker_lost("decoder", format!("no thread: {error}")))?;
        Ok(Self {
            jobs: Some(jobs),
            places: Arc::new(Semaphore::new(QUEUE)),
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
        let jobs = self.jobs.as_ref().filter(|jobs| !jobs.is_closed());
        // Weak, so that a picture without tokens does not keep the decoder from ending.
        let jobs = jobs.ok_or_else(|| worker_gone("decoder"))?.downgrade();
        let places = self.places.clone();
        // Ends with the sender of the codes, which the caller holds, or with a place in the queue.
        tokio::spawn(async move {
            let Ok(tokens) = codes.await else { return };
            let Ok(place) = places.acquire_owned().await else {
                return;
            };
            if let Some(jobs) = jobs.upgrade() {
                let spec = spec(job, tokens);
                let _ = jobs.send(Job {
                    spec,
                    events,
                    _place: place,
                });
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use xomni_engine::{checkpoint::XOmniConfig, decode::WeightsSource, ops::cpu::Cpu, text::Grid};

    use super::*;

    fn decoder() -> LocalDecoder {
        let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/xomni-tiny");
        let (x_omni, flux) = (Path::new(tiny).join("x-omni"), Path::new(tiny).join("flux"));
        let config = XOmniConfig::open(&x_omni).expect("config");
        let source = WeightsSource::Checkpoint;
        let decoder = PictureDecoder::open(Arc::new(Cpu::new()), &x_omni, &flux, &config, source);
        LocalDecoder::start(Arc::new(decoder.expect("decoder"))).expect("thread")
    }

    fn job(image_index: u32) -> DecodeJob {
        DecodeJob {
            request_id: String::new(),
            attempt: 0,
            prompt: "a fox".into(),
            grid: Grid::new(1, 1),
            seed: 1,
            image_index,
            steps: Some(1),
        }
    }

    #[tokio::test]
    async fn more_pictures_than_the_queue_has_places_wait() {
        let decoder = decoder();
        let mut pictures = Vec::new();
        for index in 0..2 * QUEUE as u32 {
            let (codes, tokens) = oneshot::channel();
            let stream = decoder.decode(job(index), tokens).await.expect("announced");
            pictures.push((codes, stream));
        }
        let (last, mut stream) = pictures.pop().expect("many");
        for (codes, _nobody_reads) in pictures {
            codes.send(vec![0]).expect("wanted");
        }
        last.send(vec![0]).expect("wanted");
        loop {
            match stream.next().await.expect("no error").expect("a picture") {
                DecodeEvent::Progress(_) => {}
                DecodeEvent::Png(png) => return assert!(png.starts_with(b"\x89PNG")),
            }
        }
    }

    #[tokio::test]
    async fn a_decoder_ends_though_announced_pictures_have_no_tokens() {
        let decoder = decoder();
        let (codes, tokens) = oneshot::channel();
        let mut stream = decoder.decode(job(0), tokens).await.expect("announced");
        drop(decoder);
        codes.send(vec![0]).expect("still waits");
        assert!(stream.next().await.expect("no error").is_none());
    }
}
