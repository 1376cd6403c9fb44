//! The decoder's thread: what lies before it, and how it is worked off.

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::{Span, info_span};
use xomni_engine::{
    Error, Result,
    decode::{DecodeSpec, PictureDecoder, Progress, PromptEncoding},
    ops::ImageOps,
    picture::{Picture, png},
};

use super::{
    Begun,
    meter::{DecoderMeter, Expected, Stopwatch},
};
use crate::{
    api::{DecodeEvent, DecodeJob},
    telemetry,
};

/// One picture on its way. Its place is free once the job is dropped.
pub(super) struct Job<O: ImageOps> {
    job: DecodeJob,
    events: mpsc::Sender<Result<DecodeEvent>>,
    span: Span,
    /// `None` if the prompt cannot be encoded, which its owner has been told.
    prompt: OnceLock<Option<Arc<PromptEncoding<O>>>>,
    expected: Expected,
    _place: OwnedSemaphorePermit,
}

/// What the thread is told.
pub(super) enum Message<O: ImageOps> {
    /// A job whose prompt can be encoded.
    Begun(Begun<O>),
    /// A job whose codes are there, and the span of its wait.
    Ready(Arc<Job<O>>, Vec<u32>, Span),
}

impl<O: ImageOps> Job<O> {
    pub(super) fn new(
        job: DecodeJob,
        events: mpsc::Sender<Result<DecodeEvent>>,
        expected: Expected,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let (span, prompt) = (Span::current(), OnceLock::new());
        Self {
            job,
            events,
            span,
            prompt,
            expected,
            _place: place,
        }
    }

    /// Waits until nobody reads the job's stream.
    pub(super) async fn abandoned(&self) {
        self.events.closed().await;
    }

    /// The span of a job that waits for its turn.
    pub(super) fn queued(&self) -> Span {
        info_span!(parent: &self.span, "queue")
    }

    /// Sends the last event, for which the channel always keeps a place.
    pub(super) fn end(&self, last: Result<DecodeEvent>) {
        let _ = self.events.try_send(last);
    }

    /// Tells its owner of the part that begins, unless too much is unread already.
    fn tell(&self, progress: Progress) {
        if self.events.capacity() > 1 {
            let _ = self.events.try_send(Ok(DecodeEvent::Progress(progress)));
        }
    }
}

impl<O: ImageOps> fmt::Debug for Message<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begun(_) => "Begun",
            Self::Ready(..) => "Ready",
        })
    }
}

/// The work of one thread.
pub(super) struct Desk<O: ImageOps> {
    decoder: Arc<PictureDecoder<O>>,
    inbox: mpsc::UnboundedReceiver<Message<O>>,
    begun: VecDeque<Begun<O>>,
    ready: VecDeque<(Arc<Job<O>>, Vec<u32>, Span)>,
    /// Encodings that live jobs hold, so that the pictures of one prompt share theirs.
    encodings: Vec<(String, Weak<PromptEncoding<O>>)>,
    meter: DecoderMeter,
}

impl<O: ImageOps> Desk<O> {
    pub(super) fn new(
        decoder: Arc<PictureDecoder<O>>,
        inbox: mpsc::UnboundedReceiver<Message<O>>,
        meter: DecoderMeter,
    ) -> Self {
        let (begun, ready, encodings) = (VecDeque::new(), VecDeque::new(), Vec::new());
        Self {
            decoder,
            inbox,
            begun,
            ready,
            encodings,
            meter,
        }
    }

    /// Develops what is ready; encodes prompts meanwhile.
    pub(super) fn run(mut self) {
        while self.receive() {
            if let Some((job, codes, queued)) = self.ready.pop_front() {
                drop(queued);
                self.finish(&job, codes);
            } else if let Some(job) = self.begun.pop_front().and_then(|job| job.upgrade()) {
                self.prompt(&job);
            }
        }
    }

    /// Takes what has come, waiting while there is nothing to do; `false` at the end.
    fn receive(&mut self) -> bool {
        if self.begun.is_empty() && self.ready.is_empty() {
            match self.inbox.blocking_recv() {
                Some(message) => self.take(message),
                None => return false,
            }
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.take(message);
        }
        !self.inbox.is_closed()
    }

    fn take(&mut self, message: Message<O>) {
        match message {
            Message::Begun(job) => self.begun.push_back(job),
            Message::Ready(job, codes, queued) => self.ready.push_back((job, codes, queued)),
        }
    }

    /// The encoding of a job's prompt; `None` if it failed and the owner has been told.
    fn prompt(&mut self, job: &Job<O>) -> Option<Arc<PromptEncoding<O>>> {
        if let Some(prompt) = job.prompt.get() {
            return prompt.clone();
        }
        if job.events.is_closed() {
            return None;
        }
        let encoded = self.shared(&job.job.prompt).map_or_else(
            || {
                let part = info_span!(parent: &job.span, "text encoders").entered();
                let encoded = caught(|| self.decoder.encode_prompt(&job.job.prompt));
                ended(&part, encoded).map(Arc::new)
            },
            Ok,
        );
        let prompt = match encoded {
            Ok(prompt) => {
                let text = job.job.prompt.clone();
                self.encodings.push((text, Arc::downgrade(&prompt)));
                Some(prompt)
            }
            Err(error) => {
                job.end(Err(error));
                None
            }
        };
        job.prompt.get_or_init(|| prompt).clone()
    }

    fn shared(&mut self, prompt: &str) -> Option<Arc<PromptEncoding<O>>> {
        self.encodings
            .retain(|(_, encoding)| encoding.strong_count() > 0);
        let mut same = self.encodings.iter().filter(|(text, _)| text == prompt);
        same.find_map(|(_, encoding)| encoding.upgrade())
    }

    fn finish(&mut self, job: &Job<O>, codes: Vec<u32>) {
        let Some(prompt) = self.prompt(job) else {
            return;
        };
        let spec = DecodeSpec {
            prompt: job.job.prompt.clone(),
            grid: job.job.grid,
            tokens: codes,
            seed: job.job.seed,
            image_index: job.job.image_index,
            steps: job.job.steps,
        };
        let running = job.expected.start();
        let picture = caught(|| self.develop(job, &spec, &prompt));
        let picture = picture.and_then(|picture| {
            let part = info_span!(parent: &job.span, "png").entered();
            ended(&part, png::encode(&picture))
        });
        running.ended(&picture);
        job.end(picture.map(DecodeEvent::Png));
    }

    fn develop(
        &self,
        job: &Job<O>,
        spec: &DecodeSpec,
        prompt: &PromptEncoding<O>,
    ) -> Result<Picture> {
        let mut part = None;
        let mut stopwatch = Stopwatch::default();
        let picture = self.decoder.develop(spec, prompt, &mut |progress| {
            stopwatch.lap(progress, &job.expected, &self.meter);
            let begins = match progress {
                Progress::Encode => Some(info_span!(parent: &job.span, "image tokens")),
                Progress::Denoise { step: 0, of } => {
                    Some(info_span!(parent: &job.span, "denoise", steps = of))
                }
                Progress::Denoise { .. } => None,
                Progress::Vae => Some(info_span!(parent: &job.span, "vae")),
            };
            if let Some(span) = begins {
                // The part before ends first.
                drop(part.take());
                part = Some(span.entered());
            }
            if let (Progress::Denoise { .. }, Some(part)) = (progress, &part) {
                telemetry::event(part, "step");
            }
            job.tell(progress);
            if job.events.is_closed() || self.inbox.is_closed() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        let picture = match &part {
            Some(part) => ended(part, picture),
            None => picture,
        };
        if self.inbox.is_closed() && matches!(picture, Err(Error::Cancelled)) {
            return Err(crate::api::worker_gone("decoder"));
        }
        picture
    }
}

/// What a part of the work came to; its span says so.
fn ended<T>(part: &Span, result: Result<T>) -> Result<T> {
    result.inspect_err(|error| telemetry::fail(part, error))
}

/// Runs one job's work: a panic is that job's error. The models are only read, and an encoding or
/// a picture that was not finished is dropped.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let reason = text(panic.as_ref());
        Err(Error::worker_lost("decoder", format!("panicked: {reason}")))
    })
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
