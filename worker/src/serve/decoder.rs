//! `Decoder.Decode` and `Decoder.Encode` over any [`Decoder`] and [`Encoder`].

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::{
    sync::oneshot,
    time::{Sleep, sleep_until, timeout_at},
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming, codegen::Bytes};
use tracing::{Instrument, Span, field, info_span};
use xomni_engine::{Error, text::Grid};
use xomni_proto::worker::{
    DecodeDone, DecodeEvent, DecodeInput, EncodedPicture, PictureInput,
    decode_event::Event,
    decode_input::Input,
    decoder_server::{Decoder as Rpc, DecoderServer},
};

use super::{Responses, deadline, failed, refused};
use crate::{
    api::{self, Decoder, EncodeJob, Encoder, JobStream},
    convert::{
        Identity, MAX_MESSAGE, Refusal,
        decoder::{self as convert, MAX_CHUNK},
    },
    telemetry,
};

/// Largest picture file that is read as tokens, in bytes.
const MAX_PICTURE: usize = 32 << 20;

/// A decoder and an encoder that answer calls.
#[derive(Debug)]
pub struct DecoderService<D, E> {
    decoder: Arc<D>,
    encoder: Arc<E>,
    identity: Identity,
}

/// The service of `decoder` and `encoder`, to be added to a server. Ending a call cancels its job.
pub fn decoder_service<D: Decoder, E: Encoder>(
    decoder: Arc<D>,
    encoder: Arc<E>,
    identity: Identity,
) -> DecoderServer<DecoderService<D, E>> {
    DecoderServer::new(DecoderService {
        decoder,
        encoder,
        identity,
    })
    .max_decoding_message_size(MAX_MESSAGE)
}

impl<D: Decoder, E: Encoder> DecoderService<D, E> {
    /// The status of a call that is not taken; the call is that of the current span.
    fn refused(&self, refusal: impl Into<Refusal>) -> Status {
        let retry_after = self.identity.standing.borrow().retry_after();
        refused(&Span::current(), refusal.into(), retry_after)
    }

    async fn start(
        &self,
        mut inputs: Streaming<DecodeInput>,
        deadline: Option<Instant>,
    ) -> Result<Development, Status> {
        let Some(DecodeInput {
            input: Some(Input::Job(job)),
        }) = inputs.message().await?
        else {
            return Err(self.refused(Error::bad_input("input", "must begin with a job", "none")));
        };
        let job = convert::job(job, &self.identity).map_err(|refusal| self.refused(refusal))?;
        let span = Span::current();
        span.record("request_id", &job.request_id);
        span.record("attempt", job.attempt);
        span.record("image", job.image_index);
        let grid = job.grid;
        let (codes, arriving) = oneshot::channel();
        let accepted = self.decoder.decode(job, arriving).await;
        let events = accepted.map_err(|error| self.refused(error))?;
        Ok(Development {
            arrival: Some(Arrival {
                inputs,
                codes,
                grid,
            }),
            events,
            deadline: deadline.map(|at| Box::pin(sleep_until(at.into()))),
            png: None,
            span,
        })
    }

    async fn read(&self, mut chunks: Streaming<PictureInput>) -> Result<EncodedPicture, Status> {
        let mut picture = Vec::new();
        let mut name = None;
        while let Some(input) = chunks.message().await? {
            if name.is_none() {
                let head = convert::picture_head(&input, &self.identity);
                name = Some(head.map_err(|refusal| self.refused(refusal))?);
            }
            let chunk = input.chunk;
            let length = picture.len() + chunk.len();
            if chunk.len() > MAX_CHUNK {
                let limit = format!("must be at most {MAX_CHUNK} bytes");
                return Err(self.refused(Error::bad_input("chunk", limit, chunk.len())));
            }
            if length > MAX_PICTURE {
                let limit = format!("must be at most {MAX_PICTURE} bytes");
                return Err(self.refused(Error::bad_input("image", limit, length)));
            }
            picture.extend_from_slice(&chunk);
        }
        let request_id = name.unwrap_or_default();
        Span::current().record("request_id", &request_id);
        let picture = picture.into();
        let job = EncodeJob {
            request_id,
            picture,
        };
        let (grid, codes) = self
            .encoder
            .encode(job)
            .await
            .map_err(|error| self.refused(error))?;
        Ok(convert::wire_picture(grid, codes))
    }
}

#[tonic::async_trait]
impl<D: Decoder, E: Encoder> Rpc for DecoderService<D, E> {
    type DecodeStream = Responses<DecodeEvent>;

    async fn decode(
        &self,
        request: Request<Streaming<DecodeInput>>,
    ) -> Result<Response<Self::DecodeStream>, Status> {
        let (metadata, _, inputs) = request.into_parts();
        let span = info_span!(
            "Decoder.Decode",
            otel.kind = "server",
            request_id = field::Empty,
            attempt = field::Empty,
            image = field::Empty,
            trace_id = field::Empty,
        );
        telemetry::adopt(&span, &metadata);
        let started = async {
            let deadline = deadline(&metadata).map_err(|error| self.refused(error))?;
            until(deadline, self.start(inputs, deadline)).await
        };
        let development = started.instrument(span).await?;
        Ok(Response::new(Box::pin(development)))
    }

    async fn encode(
        &self,
        request: Request<Streaming<PictureInput>>,
    ) -> Result<Response<EncodedPicture>, Status> {
        let (metadata, _, chunks) = request.into_parts();
        let span = info_span!(
            "Decoder.Encode",
            otel.kind = "server",
            request_id = field::Empty,
            trace_id = field::Empty
        );
        telemetry::adopt(&span, &metadata);
        let read = async {
            let deadline = deadline(&metadata).map_err(|error| self.refused(error))?;
            until(deadline, self.read(chunks)).await
        };
        Ok(Response::new(read.instrument(span).await?))
    }
}

async fn until<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let Some(deadline) = deadline else {
        return work.await;
    };
    let late = |_| Err(failed(&Span::current(), &Error::DeadlineExceeded));
    timeout_at(deadline.into(), work).await.unwrap_or_else(late)
}

/// Why a call ends before its picture is delivered.
enum End {
    Job(Error),
    /// What the client sends cannot be read.
    Input(Status),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Job(error)
    }
}

/// The way from a client's second message to the decoder.
struct Arrival {
    inputs: Streaming<DecodeInput>,
    codes: oneshot::Sender<Vec<u32>>,
    grid: Grid,
}

impl Arrival {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Vec<u32>, End>> {
        let input = match ready!(Pin::new(&mut self.inputs).poll_next(context)) {
            Some(input) => input.map_err(End::Input)?,
            None => return Poll::Ready(Err(Error::Cancelled.into())),
        };
        let Some(Input::Tokens(tokens)) = input.input else {
            let limit = "must be the job, then its tokens";
            return Poll::Ready(Err(Error::bad_input("input", limit, "another").into()));
        };
        Poll::Ready(convert::codes(tokens, self.grid).map_err(End::Job))
    }
}

/// What a client of Decode is sent: the events of the job while its tokens are awaited and after,
/// then its PNG in chunks.
struct Development {
    /// Taken when the tokens are there.
    arrival: Option<Arrival>,
    events: JobStream<api::DecodeEvent>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// What is left of the PNG, and its length; chunks are cut from it without copying.
    png: Option<(Bytes, u64)>,
    /// Ends with the call.
    span: Span,
}

impl Development {
    fn chunk(&mut self) -> Option<Event> {
        let (png, length) = self.png.as_mut()?;
        if png.is_empty() {
            let done = Event::Done(DecodeDone { length: *length });
            self.png = None;
            return Some(done);
        }
        Some(Event::Chunk(png.split_to(png.len().min(MAX_CHUNK))))
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Event, End>>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(Err(Error::DeadlineExceeded.into())));
        }
        if let Some(arrival) = &mut self.arrival
            && let Poll::Ready(codes) = arrival.poll(context)
        {
            let codes = codes?;
            if let Some(arrival) = self.arrival.take() {
                // A job that is gone says why in its events.
                let _ = arrival.codes.send(codes);
            }
        }
        if self.png.is_none() {
            match ready!(Pin::new(&mut self.events).poll_next(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(api::DecodeEvent::Progress(progress))) => {
                    let progress = convert::wire_progress(progress);
                    return Poll::Ready(Some(Ok(Event::Progress(progress))));
                }
                Some(Ok(api::DecodeEvent::Png(png))) => {
                    let length = png.len() as u64;
                    self.png = Some((png.into(), length));
                }
            }
        }
        Poll::Ready(self.chunk().map(Ok))
    }
}

impl Stream for Development {
    type Item = Result<DecodeEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let span = self.span.clone();
        let _within = span.enter();
        let event = ready!(self.poll_event(context));
        Poll::Ready(event.map(|event| match event {
            Ok(event) => Ok(DecodeEvent { event: Some(event) }),
            Err(End::Job(error)) => Err(failed(&span, &error)),
            Err(End::Input(status)) => {
                telemetry::fail(&span, status.message());
                Err(status)
            }
        }))
    }
}
