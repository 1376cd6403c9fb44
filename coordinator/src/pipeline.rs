//! The way of one request: tokenise, draw the tokens, develop each picture, deliver.

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
    schedule::{Mode, OutputSpec},
    text::Tokenizer,
};
use xomni_worker::api::{
    Backbone, DecodeEvent, DecodeJob, Decoder, GenerateJob, Progress, TokenFrame,
};

use self::partial::Partials;
use crate::request::ImageJob;

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

/// Takes requests from a prompt to pictures over a backbone and a decoder, wherever they run.
#[derive(Debug)]
pub struct Pipeline<B, D> {
    tokenizer: Arc<Tokenizer>,
    backbone: B,
    decoder: Arc<D>,
}

impl<B: Backbone, D: Decoder> Pipeline<B, D> {
    /// A pipeline over these services.
    pub fn new(tokenizer: Arc<Tokenizer>, backbone: B, decoder: Arc<D>) -> Self {
        Self {
            tokenizer,
            backbone,
            decoder,
        }
    }

    /// Tokens of a job's prompt as the backbone reads it.
    ///
    /// # Errors
    /// As [`Tokenizer::image_prompt`].
    pub fn prompt_tokens(&self, job: &ImageJob) -> Result<usize> {
        let prompt = self.tokenizer.image_prompt(&job.prompt, job.grid)?;
        Ok(prompt.len())
    }

    /// Draws all pictures of a job, reporting to `events` until each is [`ImageEvent::Done`].
    /// Dropping the future, or the receiver of `events`, cancels what is left.
    ///
    /// # Errors
    /// The first error of any stage; nothing else of the job goes on then.
    pub async fn draw(&self, job: ImageJob, events: mpsc::Sender<ImageEvent>) -> Result<()> {
        let start = Instant::now();
        let generate = generate_job(&self.tokenizer, &job)?;
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
        let prompt = self
            .tokenizer
            .decode(&self.tokenizer.encode_text(&job.prompt)?, false);
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
            codes.push(self.tokenizer.image_code(token).ok_or_else(|| {
                let reason = format!("token {token} of image {output} is no image code");
                Error::worker_lost("backbone", reason)
            })?);
        }
        Ok(())
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

fn joined(decoded: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    decoded.unwrap_or_else(|error| Err(Error::worker_lost("decoder", error.to_string())))
}

fn ended_early(what: &'static str) -> Error {
    Error::worker_lost(what, "its stream ended before its last event")
}

fn unasked() -> Error {
    Error::worker_lost("backbone", "it sent tokens of an image that waits for none")
}
