//! A decoder in another process.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use xomni_engine::{Error, Result, text::Grid};
use xomni_proto::worker::{
    self as wire, DecodeInput, ImageTokens, PictureInput, decode_event::Event, decode_input::Input,
    decoder_client::DecoderClient,
};

use super::{Calls, EVENTS_IN_FLIGHT, lost, within};
use crate::{
    api::{DecodeEvent, DecodeJob, Decoder, EncodeJob, Encoder, JobStream},
    convert::{
        MAX_MESSAGE,
        decoder::{self as convert, MAX_CHUNK},
        status,
    },
};

/// Messages of a Decode call: the job and its tokens.
const INPUTS: usize = 2;
/// Bytes that a PNG has besides its pixels: headers, and what deflate adds to noise.
const PNG_OVERHEAD: usize = 1 << 20;
/// Pixels a token side.
const PIXELS_PER_TOKEN: usize = 16;

/// A decoder behind a channel. Clones share the channel.
#[derive(Debug, Clone)]
pub struct RemoteDecoder {
    client: DecoderClient<Channel>,
    calls: Calls,
}

impl RemoteDecoder {
    /// A decoder that is called over `channel`, which may connect later.
    pub fn new(channel: Channel, calls: Calls) -> Self {
        Self {
            client: DecoderClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            calls,
        }
    }
}

impl Decoder for RemoteDecoder {
    /// A worker that is lost, silent for too long, or breaks the protocol ends the stream with
    /// [`Error::WorkerLost`].
    async fn decode(
        &self,
        job: DecodeJob,
        codes: oneshot::Receiver<Vec<u32>>,
    ) -> Result<JobStream<DecodeEvent>> {
        let grid = job.grid;
        let (inputs, messages) = mpsc::channel(INPUTS);
        let message = Input::Job(convert::wire_job(job, &self.calls.target));
        let closed = |_| lost("the call ended before it began");
        inputs
            .try_send(DecodeInput {
                input: Some(message),
            })
            .map_err(closed)?;
        let request = self.calls.request(ReceiverStream::new(messages), None);
        let mut client = self.client.clone();
        let patience = self.calls.patience.accept;
        let answer = within(patience, "the answer to a decode", client.decode(request)).await?;
        let responses = answer
            .map_err(|status| status::error(&status))?
            .into_inner();
        let (events, stream) = mpsc::channel(EVENTS_IN_FLIGHT);
        let reader = Reader {
            inputs,
            responses,
            png: Vec::new(),
            most: PNG_OVERHEAD.saturating_add(grid.tokens().saturating_mul(2 * pixel_bytes())),
            first: self.calls.patience.first,
            progress: self.calls.patience.progress,
        };
        // Ends with its stream: when the job does, or when nobody reads it.
        tokio::spawn(reader.run(codes, events));
        Ok(JobStream::new(stream))
    }
}

impl Encoder for RemoteDecoder {
    async fn encode(&self, job: EncodeJob) -> Result<(Grid, Vec<u32>)> {
        let mut picture = job.picture;
        let mut head = Some(convert::wire_picture_head(
            job.request_id,
            &self.calls.target,
        ));
        let chunks = std::iter::from_fn(move || {
            let chunk = picture.split_to(picture.len().min(MAX_CHUNK));
            (!chunk.is_empty()).then(|| PictureInput {
                chunk,
                ..head.take().unwrap_or_default()
            })
        });
        let request = self.calls.request(tokio_stream::iter(chunks), None);
        let mut client = self.client.clone();
        let answer = within(
            self.calls.patience.first,
            "an encoding",
            client.encode(request),
        );
        let encoded = answer.await?.map_err(|status| status::error(&status))?;
        convert::picture(encoded.into_inner()).map_err(|error| lost(error.to_string()))
    }
}

/// Bytes of the pixels of a token, as RGB.
const fn pixel_bytes() -> usize {
    3 * PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
}

/// Carries the events of one job. Dropping it ends the call.
struct Reader {
    inputs: mpsc::Sender<DecodeInput>,
    responses: Streaming<wire::DecodeEvent>,
    png: Vec<u8>,
    /// Most bytes that the PNG can have.
    most: usize,
    first: Duration,
    progress: Duration,
}

impl Reader {
    async fn run(
        mut self,
        codes: oneshot::Receiver<Vec<u32>>,
        events: mpsc::Sender<Result<DecodeEvent>>,
    ) {
        let error = tokio::select! {
            () = events.closed() => return,
            ended = self.carry(codes, &events) => ended.err(),
        };
        if let Some(error) = error {
            let _ = events.send(Err(error)).await;
        }
    }

    async fn carry(
        &mut self,
        mut codes: oneshot::Receiver<Vec<u32>>,
        events: &mpsc::Sender<Result<DecodeEvent>>,
    ) -> Result<()> {
        loop {
            let event = tokio::select! {
                biased;
                event = self.responses.message() => self.on_message(event)?,
                codes = &mut codes => {
                    let codes = codes.map_err(|_| Error::Cancelled)?;
                    let input = Some(Input::Tokens(ImageTokens { codes }));
                    // A call that has ended says why in its responses.
                    let _ = self.inputs.send(DecodeInput { input }).await;
                    break;
                }
            };
            if let Some(event) = event {
                forward(events, event).await?;
            }
        }
        let mut patience = self.first;
        loop {
            let message = within(patience, "a decode event", self.responses.message()).await?;
            patience = self.progress;
            match self.on_message(message)? {
                Some(event @ DecodeEvent::Png(_)) => return forward(events, event).await,
                Some(event) => forward(events, event).await?,
                None => {}
            }
        }
    }

    /// The event of a message; `None` for a part of the picture.
    fn on_message(
        &mut self,
        message: Result<Option<wire::DecodeEvent>, tonic::Status>,
    ) -> Result<Option<DecodeEvent>> {
        let message = message.map_err(|status| status::error(&status))?;
        let message = message.ok_or_else(|| lost("the stream ended before the picture"))?;
        match message.event {
            Some(Event::Progress(progress)) if self.png.is_empty() => {
                let progress = convert::progress(progress).map_err(|e| lost(e.to_string()))?;
                Ok(Some(DecodeEvent::Progress(progress)))
            }
            Some(Event::Chunk(chunk)) => {
                if self.png.len().saturating_add(chunk.len()) > self.most {
                    return Err(lost(format!("a picture of more than {} bytes", self.most)));
                }
                self.png.extend_from_slice(&chunk);
                Ok(None)
            }
            Some(Event::Done(done)) if done.length == self.png.len() as u64 => {
                Ok(Some(DecodeEvent::Png(std::mem::take(&mut self.png))))
            }
            Some(Event::Done(done)) => {
                let got = self.png.len();
                Err(lost(format!(
                    "a picture of {} bytes, {got} came",
                    done.length
                )))
            }
            Some(Event::Progress(_)) => Err(lost("progress after the picture")),
            None => Err(lost("an empty decode event")),
        }
    }
}

/// Hands an event to the reader of the job; one that is gone needs none.
async fn forward(events: &mpsc::Sender<Result<DecodeEvent>>, event: DecodeEvent) -> Result<()> {
    events.send(Ok(event)).await.map_err(|_| Error::Cancelled)
}
