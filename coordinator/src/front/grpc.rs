//! `xomni.v1.Images` over the pipeline.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};
use tracing::{Instrument, Span, field};
use xomni_engine::{Error, Result};
use xomni_proto::images::{
    GenerateImagesRequest, ImageEvent,
    images_server::{Images, ImagesServer},
};
use xomni_worker::{
    api::{Backbone, Decoder},
    convert::{
        Refusal,
        status::{failed, refused},
    },
    serve::deadline,
    telemetry,
};

use super::{
    call::{Call, Calls, Phase},
    convert,
};
use crate::{
    admission::{Demand, Gate, Waiting},
    metrics::Metrics,
    pipeline::Pipeline,
    request::{ImageJob, Limits},
    routing::{Router, Stage},
};

/// Events that a slow client may leave unread before its pictures wait.
const EVENTS: usize = 64;

/// What requests go through.
#[derive(Debug)]
pub struct Front<B, D> {
    /// Name of the served model.
    pub model: String,
    /// What it can draw.
    pub limits: Limits,
    /// Longest that a request may take.
    pub timeout: Duration,
    /// Draws.
    pub pipeline: Pipeline<B, D>,
    /// Bounds what is drawn at once.
    pub gate: Gate,
    /// Knows who can draw.
    pub router: Router,
    /// Counts calls and ends them.
    pub calls: Calls,
    /// Counts everything else.
    pub metrics: Metrics,
}

/// The service of a front, to be added to a server. Ending a call cancels its request.
pub fn images_service<B: Backbone, D: Decoder>(
    front: Arc<Front<B, D>>,
) -> ImagesServer<ImagesService<B, D>> {
    ImagesServer::new(ImagesService { front })
}

/// A front that answers calls.
#[derive(Debug)]
pub struct ImagesService<B, D> {
    front: Arc<Front<B, D>>,
}

#[tonic::async_trait]
impl<B: Backbone, D: Decoder> Images for ImagesService<B, D> {
    type GenerateStream = ReceiverStream<Result<ImageEvent, Status>>;

    async fn generate(
        &self,
        request: Request<GenerateImagesRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let call = self.front.calls.begin();
        let (metadata, _, message) = request.into_parts();
        let span = tracing::info_span!(
            "request",
            request_id = field::Empty,
            trace_id = field::Empty
        );
        telemetry::adopt(&span, &metadata);
        match span.in_scope(|| self.front.admit(message, &metadata)) {
            Ok((job, waiting)) => {
                let stream = self.front.clone().start(call, job, waiting, span);
                Ok(Response::new(stream))
            }
            Err(refusal) => {
                let status = refused(refusal, self.front.retry_after());
                call.end(status.code());
                Err(status)
            }
        }
    }
}

impl<B: Backbone, D: Decoder> Front<B, D> {
    /// Validates a request and takes it or has it wait.
    fn admit(
        &self,
        message: GenerateImagesRequest,
        metadata: &MetadataMap,
    ) -> Result<(ImageJob, Waiting), Refusal> {
        if self.calls.phase() != Phase::Serving {
            return Err(Refusal::Unavailable("the coordinator drains"));
        }
        let latest = Instant::now().checked_add(self.timeout);
        let deadline = deadline(metadata)?.into_iter().chain(latest).min();
        let (request, tenant) = convert::request(message, &self.model)?;
        let mut job = request.validate(&self.limits)?;
        job.deadline = deadline;
        let span = Span::current();
        span.record("request_id", &job.request_id);
        if let Some(trace) = telemetry::trace_id(&span) {
            span.record("trace_id", trace);
        }
        for (stage, missing) in [
            (Stage::Backbone, "no backbone is ready"),
            (Stage::Decoder, "no decoder is ready"),
        ] {
            if self.router.ready(stage, &self.model) == 0 {
                return Err(Refusal::Unavailable(missing));
            }
        }
        let sequences = 1 + u64::from(job.sampling.guided());
        let waiting = self.gate.enter(Demand {
            tenant,
            priority: job.priority,
            cost: (job.n * job.grid.tokens()) as u64 * sequences,
            deadline,
        })?;
        Ok((job, waiting))
    }

    fn retry_after(&self) -> Duration {
        let rate = self.router.rate(Stage::Backbone, &self.model);
        self.gate.retry_after(rate)
    }

    /// Draws a request until it is done or its client is gone, in a task that ends with the stream.
    fn start(
        self: Arc<Self>,
        call: Call,
        job: ImageJob,
        waiting: Waiting,
        span: Span,
    ) -> ReceiverStream<Result<ImageEvent, Status>> {
        let (events, stream) = mpsc::channel(EVENTS);
        let task = async move {
            let deadline = job.deadline;
            let drawn = self.draw(&call, job, waiting, &events);
            let result = tokio::select! {
                biased;
                () = events.closed() => Err(failed(&Error::Cancelled)),
                () = self.calls.ended() => Err(Status::unavailable("the coordinator ends")),
                () = until(deadline) => Err(failed(&Error::DeadlineExceeded)),
                drawn = drawn => drawn.map_err(|error| refused(error.into(), self.retry_after())),
            };
            call.end(result.as_ref().map_or_else(Status::code, |()| Code::Ok));
            if let Err(status) = result {
                let (code, reason) = (status.code(), status.message());
                tracing::info!(?code, reason, "request ended");
                // A client that is gone needs no status.
                let _ = events.send(Err(status)).await;
            }
        };
        tokio::spawn(task.instrument(span));
        ReceiverStream::new(stream)
    }

    /// Draws a request as soon as it is admitted.
    async fn draw(
        &self,
        call: &Call,
        job: ImageJob,
        waiting: Waiting,
        events: &mpsc::Sender<Result<ImageEvent, Status>>,
    ) -> Result<()> {
        let admission = tracing::info_span!("admission");
        let _permit = waiting.permit().instrument(admission).await?;
        let waited = call.start().elapsed();
        self.metrics.queue_seconds.observe(waited.as_secs_f64());
        send(events, convert::accepted(job.request_id.clone(), job.seed)).await?;
        let (sender, mut drawn) = mpsc::channel(EVENTS);
        let forward = async {
            while let Some(event) = drawn.recv().await {
                let picture = matches!(event, crate::pipeline::ImageEvent::Done(_));
                for event in convert::events(event) {
                    send(events, event).await?;
                }
                self.metrics.images.inc_by(u64::from(picture));
            }
            Ok(())
        };
        tokio::try_join!(self.pipeline.draw(job, sender), forward)?;
        Ok(())
    }
}

async fn send(events: &mpsc::Sender<Result<ImageEvent, Status>>, event: ImageEvent) -> Result<()> {
    events.send(Ok(event)).await.map_err(|_| Error::Cancelled)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
