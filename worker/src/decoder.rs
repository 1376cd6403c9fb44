//! A decoder on a thread of this process. A prompt is encoded as soon as its job is known, while
//! the tokens are still being drawn; pictures are developed one at a time, in the order in which
//! their codes arrive.

mod desk;
mod encoder;
mod meter;
mod node;

use std::{
    sync::{Arc, Weak},
    thread::JoinHandle,
};

pub use encoder::LocalEncoder;
pub use meter::DecoderMeter;
pub use node::DecoderNode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use xomni_cluster::record::Load;
use xomni_engine::{
    Error, Result,
    decode::PictureDecoder,
    ops::{ImageOps, cpu::Cpu},
};

use self::desk::{Desk, Job, Message};
use crate::api::{DecodeEvent, DecodeJob, Decoder, JobStream, worker_gone};

/// Jobs that a decoder within its caller's process holds; more wait outside.
const PLACES: usize = 1024;
/// Progress events that a slow reader may leave unread; more are dropped, the last event never is.
const EVENTS_IN_FLIGHT: usize = 64;

/// A picture decoder, its thread and its jobs. Dropping it ends what has not been developed.
#[derive(Debug)]
pub struct LocalDecoder<O: ImageOps = Cpu> {
    desk: Option<mpsc::UnboundedSender<Message<O>>>,
    places: Arc<Semaphore>,
    max_places: usize,
    refuses: bool,
    steps: usize,
    meter: DecoderMeter,
    thread: Option<JoinHandle<()>>,
}

impl<O: ImageOps> LocalDecoder<O> {
    /// Starts the thread. A job for which there is no place waits.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] if the system gives no thread.
    pub fn start(decoder: Arc<PictureDecoder<O>>) -> Result<Self> {
        Self::with_places(decoder, PLACES, false)
    }

    /// Starts the thread. A job is refused while `max_queue` others wait behind the one that runs.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] if the system gives no thread.
    pub fn bounded(decoder: Arc<PictureDecoder<O>>, max_queue: usize) -> Result<Self> {
        let places = max_queue.saturating_add(1).min(Semaphore::MAX_PERMITS);
        Self::with_places(decoder, places, true)
    }

    fn with_places(
        decoder: Arc<PictureDecoder<O>>,
        max_places: usize,
        refuses: bool,
    ) -> Result<Self> {
        // Bounded by the places: two messages a job.
        let (desk, inbox) = mpsc::unbounded_channel();
        let meter = DecoderMeter::default();
        let steps = decoder.steps(None);
        let work = Desk::new(decoder, inbox, meter.clone());
        let thread = std::thread::Builder::new()
            .name("decoder".into())
            .spawn(move || work.run())
            .map_err(|error| Error::worker_lost("decoder", format!("no thread: {error}")))?;
        Ok(Self {
            desk: Some(desk),
            places: Arc::new(Semaphore::new(max_places)),
            max_places,
            refuses,
            steps,
            meter,
            thread: Some(thread),
        })
    }

    /// What it can hold and holds.
    pub fn load(&self) -> Load {
        let jobs = self.max_places - self.places.available_permits();
        let running = self.meter.running();
        Load {
            queue_capacity: self.max_places as u64 - 1,
            queued: (jobs as u64).saturating_sub(running),
            running,
            backlog: self.meter.backlog(),
            rate: self.meter.rate(),
            ..Load::default()
        }
    }

    /// What it counts.
    pub fn meter(&self) -> &DecoderMeter {
        &self.meter
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit> {
        let places = self.places.clone();
        if !self.refuses {
            return places
                .acquire_owned()
                .await
                .map_err(|_| worker_gone("decoder"));
        }
        places.try_acquire_owned().map_err(|_| {
            self.meter.rejected();
            Error::Capacity {
                what: "decoder queue",
                limit: format!("{} pictures", self.max_places - 1),
                needed: format!("{} denoising steps are ahead", self.meter.backlog()),
                retry_after: None,
            }
        })
    }
}

impl<O: ImageOps> Decoder for LocalDecoder<O> {
    async fn decode(
        &self,
        job: DecodeJob,
        codes: oneshot::Receiver<Vec<u32>>,
    ) -> Result<JobStream<DecodeEvent>> {
        let gone = || worker_gone("decoder");
        let place = self.place().await?;
        let (events, stream) = mpsc::channel(EVENTS_IN_FLIGHT);
        let steps = job.steps.unwrap_or(self.steps) as u64;
        let job = Arc::new(Job::new(job, events, self.meter.expect(steps), place));
        let desk = self.desk.as_ref().ok_or_else(gone)?;
        desk.send(Message::Begun(Arc::downgrade(&job)))
            .map_err(|_| gone())?;
        // Ends with the codes, with their sender or with the stream, which the caller holds.
        tokio::spawn(hand_in(job, codes, desk.downgrade()));
        Ok(JobStream::new(stream))
    }
}

/// Carries a job's codes to the desk, which may be gone by then.
async fn hand_in<O: ImageOps>(
    job: Arc<Job<O>>,
    codes: oneshot::Receiver<Vec<u32>>,
    desk: mpsc::WeakUnboundedSender<Message<O>>,
) {
    let codes = tokio::select! {
        () = job.abandoned() => return,
        codes = codes => codes,
    };
    match (codes, desk.upgrade()) {
        (Err(_), _) => job.end(Err(Error::Cancelled)),
        (Ok(_), None) => job.end(Err(worker_gone("decoder"))),
        (Ok(codes), Some(desk)) => {
            // A desk that is gone drops the job, and its stream ends.
            let queued = job.queued();
            let _ = desk.send(Message::Ready(job, codes, queued));
        }
    }
}

impl<O: ImageOps> Drop for LocalDecoder<O> {
    fn drop(&mut self) {
        self.desk = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A job that nobody else holds may have been given up.
type Begun<O> = Weak<Job<O>>;
