//! The way of one request. For pictures: tokenise, draw the tokens, develop each picture, deliver.
//! For text: read the pictures that were sent, tokenise the chat, write the answers, deliver.

mod chat;
mod choice;
mod partial;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tracing::Instrument;
use xomni_engine::{
    Error, Result,
    schedule::{FinishReason, Mode, OutputSpec},
    text::Tokenizer,
};
use xomni_worker::api::{
    Backbone, DecodeEvent, DecodeJob, Decoder, EncodeJob, Encoder, GenerateJob, Progress,
    TokenFrame,
};

pub use self::chat::ChatEvent;
use self::{choice::Choice, partial::Partials};
use crate::request::{ChatModel, ImageJob, TextJob};

/// One finished picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Index within the request.
    pub index: usize,
    /// The picture as a PNG file.
    pub png: Vec<u8>,
    /// The image codes it was developed from, row by row.
    pub codes: Vec<u32>,
    /// From the start of the request to its last token.
    pub drawn_after: Duration,
    /// From its last token to the PNG.
    pub decoded_in: Duration,
}

/// What happens on the way, in order for each image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageEvent {
    /// Image `index` has `done` of `total` tokens.
    Tokens {
        /// Index within the request.
        index: usize,
        /// Tokens drawn.
        done: usize,
        /// Tokens in all.
        total: usize,
    },
    /// Image `index` is being developed.
    Decoding {
        /// Index within the request.
        index: usize,
        /// The part that begins.
        stage: Progress,
    },
    /// What image `index` looks like so far, the rest filled up.
    Partial {
        /// Index within the request.
        index: usize,
        /// Counts the partial pictures of the image, from 0.
        number: usize,
        /// The picture as a PNG file.
        png: Vec<u8>,
    },
    /// An image is done.
    Done(Image),
}

/// More of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextEvent {
    /// Index within the request.
    pub index: usize,
    /// What follows the text so far: whole characters, and no part of a stop string.
    pub text: String,
    /// Tokens drawn for the answer so far.
    pub tokens: usize,
    /// Why the answer ends, on its last event.
    pub finished: Option<FinishReason>,
}

/// Takes requests to pictures and answers over a backbone and a decoder, wherever they run.
#[derive(Debug)]
pub struct Pipeline<B, D> {
    chat: Arc<ChatModel>,
    backbone: B,
    decoder: Arc<D>,
}

impl<B: Backbone, D: Decoder> Pipeline<B, D> {
    /// A pipeline over these services.
    pub fn new(chat: Arc<ChatModel>, backbone: B, decoder: Arc<D>) -> Self {
        Self {
            chat,
            backbone,
            decoder,
        }
    }

    /// Tokens of a job's prompt as the backbone reads it.
    ///
    /// # Errors
    /// As [`Tokenizer::image_prompt`].
    pub fn prompt_tokens(&self, job: &ImageJob) -> Result<usize> {
        let prompt = self.chat.tokenizer.image_prompt(&job.prompt, job.grid)?;
        Ok(prompt.len())
    }

    /// Draws all pictures of a job, reporting to `events` until each is [`ImageEvent::Done`].
    /// Dropping the future, or the receiver of `events`, cancels what is left.
    ///
    /// # Errors
    /// The first error of any stage; nothing else of the job goes on then.
    pub async fn draw(&self, job: ImageJob, events: mpsc::Sender<ImageEvent>) -> Result<()> {
        let start = Instant::now();
        let generate = generate_job(&self.chat.tokenizer, &job)?;
        let total = generate.max_tokens;
        let mut stream = self.backbone.generate(generate).await?;
        let mut drawing = Vec::new();
        let (mut decodes, mut previews) = (JoinSet::new(), JoinSet::new());
        for decode in self.decode_jobs(&job)? {
            let (tokens, codes) = oneshot::channel();
            drawing.push(Some(Drawing {
                codes: Vec::with_capacity(total),
                tokens,
                decode: decode.clone(),
                partials: Partials::new(job.partial_images, total),
            }));
            let develop = develop(self.decoder.clone(), decode, codes, start, events.clone());
            decodes.spawn(develop.in_current_span());
        }
        let mut unfinished = drawing.len();
        while unfinished > 0 {
            let frame = tokio::select! {
                frame = stream.next() => frame?.ok_or_else(|| ended_early("backbone"))?,
                Some(decoded) = decodes.join_next() => {
                    joined(decoded)?;
                    continue;
                }
                // It has reported by itself.
                Some(_) = previews.join_next() => continue,
            };
            let index = frame.output;
            let finished = frame.finished.is_some();
            let place = drawing.get_mut(index).ok_or_else(unasked)?;
            let picture = place.as_mut().ok_or_else(unasked)?;
            self.append(&mut picture.codes, frame)?;
            let done = picture.codes.len();
            send(&events, ImageEvent::Tokens { index, done, total }).await?;
            let (codes, decode) = (&picture.codes, &picture.decode);
            let decoder = &self.decoder;
            picture
                .partials
                .develop(codes, decode, decoder, &events, &mut previews);
            if finished && let Some(Drawing { codes, tokens, .. }) = place.take() {
                unfinished -= 1;
                // A decode that is gone reports why when it is joined.
                let _ = tokens.send(codes);
            }
        }
        while let Some(decoded) = decodes.join_next().await {
            joined(decoded)?;
        }
        Ok(())
    }

    fn decode_jobs(&self, job: &ImageJob) -> Result<Vec<DecodeJob>> {
        // What the decoder is told is the text that the backbone sees, read back from its tokens.
        // Control tokens that a user writes stay in it: here they are text, which the published
        // script, where they take effect, strips.
        let tokenizer = &self.chat.tokenizer;
        let prompt = tokenizer.decode(&tokenizer.encode_text(&job.prompt)?, false);
        let decode = |image_index| DecodeJob {
            request_id: job.request_id.clone(),
            attempt: 0,
            prompt: prompt.clone(),
            grid: job.grid,
            seed: job.seed,
            image_index,
            steps: job.steps,
        };
        Ok((0..job.n as u32).map(decode).collect())
    }

    /// Adds a frame's tokens, as image codes, to the codes of its output.
    fn append(&self, codes: &mut Vec<u32>, frame: TokenFrame) -> Result<()> {
        let TokenFrame {
            output,
            first,
            tokens,
            ..
        } = frame;
        if !tokens.is_empty() && first as usize != codes.len() {
            let got = codes.len();
            let reason =
                format!("image {output} has {got} tokens, the next frame begins at {first}");
            return Err(Error::worker_lost("backbone", reason));
        }
        for token in tokens {
            codes.push(self.chat.tokenizer.image_code(token).ok_or_else(|| {
                let reason = format!("token {token} of image {output} is no image code");
                Error::worker_lost("backbone", reason)
            })?);
        }
        Ok(())
    }
}

impl<B: Backbone, D: Decoder + Encoder> Pipeline<B, D> {
    /// Writes all answers of a job, reporting to `events` until each is finished. Dropping the
    /// future, or the receiver of `events`, cancels what is left.
    ///
    /// # Errors
    /// The first error of any stage; nothing else of the job goes on then.
    pub async fn answer(&self, job: TextJob, events: mpsc::Sender<TextEvent>) -> Result<()> {
        let codes = self.read(&job).await?;
        let generate = self.chat.generate_job(&job, &codes)?;
        let mut stream = self.backbone.generate(generate).await?;
        let mut choices = Choice::all(&job);
        let (tokenizer, stop_ids) = (&self.chat.tokenizer, &self.chat.limits.stop_ids);
        while choices.iter().any(Choice::goes_on) {
            let frame = stream.next().await?;
            let frame = frame.ok_or_else(|| ended_early("backbone"))?;
            let choice = choices.get_mut(frame.output).ok_or_else(unasked)?;
            if let Some(event) = choice.on_frame(tokenizer, stop_ids, &frame)? {
                events.send(event).await.map_err(|_| Error::Cancelled)?;
            }
        }
        Ok(())
    }

    /// The image codes of each picture of a job.
    async fn read(&self, job: &TextJob) -> Result<Vec<Vec<u32>>> {
        let mut codes = vec![vec![]; job.grids.len()];
        let mut reading = JoinSet::new();
        for (index, picture) in job.pictures().cloned().enumerate() {
            let request_id = job.request_id.clone();
            let decoder = self.decoder.clone();
            let read = async move {
                let encode = EncodeJob {
                    request_id,
                    picture,
                };
                decoder.encode(encode).await.map(|read| (index, read))
            };
            reading.spawn(read.in_current_span());
        }
        while let Some(read) = reading.join_next().await {
            let (index, (grid, read)) = joined(read)?;
            if job.grids.get(index) != Some(&grid) {
                let reason = format!("it read picture {index} as {grid} tokens");
                return Err(Error::worker_lost("encoder", reason));
            }
            codes[index] = read;
        }
        Ok(codes)
    }
}

/// What a backbone is asked for a job.
///
/// # Errors
/// As [`Tokenizer::image_prompt`].
pub fn generate_job(tokenizer: &Tokenizer, job: &ImageJob) -> Result<GenerateJob> {
    let outputs = (0..job.n as u32)
        .map(|image_index| OutputSpec {
            image_index,
            forced: vec![],
        })
        .collect();
    let negative_prompt = match job.sampling.guided() {
        true => Some(tokenizer.negative_prompt(job.grid)?),
        false => None,
    };
    Ok(GenerateJob {
        request_id: job.request_id.clone(),
        attempt: 0,
        priority: job.priority,
        mode: Mode::Image,
        prompt: tokenizer.image_prompt(&job.prompt, job.grid)?,
        negative_prompt,
        sampling: job.sampling,
        seed: job.seed,
        outputs,
        max_tokens: job.grid.tokens(),
        stop_ids: vec![],
        deadline: job.deadline,
        log_probs: false,
    })
}

/// An image whose tokens are being drawn, and where they go.
struct Drawing {
    codes: Vec<u32>,
    tokens: oneshot::Sender<Vec<u32>>,
    /// How it is developed.
    decode: DecodeJob,
    partials: Partials,
}

/// Develops one picture once its codes arrive, and reports it.
async fn develop<D: Decoder>(
    decoder: Arc<D>,
    job: DecodeJob,
    codes: oneshot::Receiver<Vec<u32>>,
    start: Instant,
    events: mpsc::Sender<ImageEvent>,
) -> Result<()> {
    let index = job.image_index as usize;
    let (tokens, forwarded) = oneshot::channel();
    let mut stream = decoder.decode(job, forwarded).await?;
    let codes = codes.await.map_err(|_| Error::Cancelled)?;
    let drawn_after = start.elapsed();
    let _ = tokens.send(codes.clone());
    loop {
        match stream.next().await?.ok_or_else(|| ended_early("decoder"))? {
            DecodeEvent::Progress(stage) => {
                send(&events, ImageEvent::Decoding { index, stage }).await?;
            }
            DecodeEvent::Png(png) => {
                let decoded_in = start.elapsed() - drawn_after;
                let image = Image {
                    index,
                    png,
                    codes,
                    drawn_after,
                    decoded_in,
                };
                return send(&events, ImageEvent::Done(image)).await;
            }
        }
    }
}

async fn send(events: &mpsc::Sender<ImageEvent>, event: ImageEvent) -> Result<()> {
    events.send(event).await.map_err(|_| Error::Cancelled)
}

fn joined<T>(ended: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    ended.unwrap_or_else(|error| Err(Error::worker_lost("decoder", error.to_string())))
}

fn ended_early(what: &'static str) -> Error {
    Error::worker_lost(what, "its stream ended before its last event")
}

fn unasked() -> Error {
    Error::worker_lost("backbone", "it sent tokens that nobody waits for")
}
