//! The way of one request: tokenise, draw the tokens, develop each picture, deliver.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinSet};
use xomni_engine::{
    Error, Result,
    schedule::{Mode, OutputSpec},
    text::Tokenizer,
};
use xomni_worker::api::{
    Backbone, DecodeEvent, DecodeJob, DecodeStage, Decoder, GenerateJob, TokenFrame,
};

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
        /// How far.
        stage: DecodeStage,
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

    /// Draws all pictures of a job, reporting to `events` until each is [`ImageEvent::Done`].
    /// Dropping the future, or the receiver of `events`, cancels what is left.
    ///
    /// # Errors
    /// The first error of any stage; nothing else of the job goes on then.
    pub async fn draw(&self, job: ImageJob, events: mpsc::Sender<ImageEvent>) -> Result<()> {
        let start = Instant::now();
        let generate = self.tokenise(&job)?;
        // What the decoder is told is the text that the backbone saw, read back from its tokens.
        let prompt = self
            .tokenizer
            .decode(&self.tokenizer.encode_text(&job.prompt)?, false);
        let total = generate.max_tokens;
        let mut stream = self.backbone.generate(generate).await?;
        let mut codes: Vec<Vec<u32>> = vec![Vec::with_capacity(total); job.n];
        let mut decodes = JoinSet::new();
        let mut drawing = job.n;
        while drawing > 0 {
            let frame = tokio::select! {
                frame = stream.next() => frame?.ok_or_else(ended_early)?,
                Some(decoded) = decodes.join_next() => {
                    joined(decoded)?;
                    continue;
                }
            };
            let index = frame.output;
            let finished = frame.finished.is_some();
            let codes = codes.get_mut(index).ok_or_else(ended_early)?;
            self.append(codes, frame)?;
            send(
                &events,
                ImageEvent::Tokens {
                    index,
                    done: codes.len(),
                    total,
                },
            )
            .await?;
            if finished {
                drawing -= 1;
                let decode = DecodeJob {
                    prompt: prompt.clone(),
                    grid: job.grid,
                    codes: std::mem::take(codes),
                    seed: job.seed,
                    image_index: index as u32,
                    steps: job.steps,
                };
                let decoder = self.decoder.clone();
                decodes.spawn(develop(decoder, decode, start.elapsed(), events.clone()));
            }
        }
        while let Some(decoded) = decodes.join_next().await {
            joined(decoded)?;
        }
        Ok(())
    }

    fn tokenise(&self, job: &ImageJob) -> Result<GenerateJob> {
        let outputs = (0..job.n as u32)
            .map(|image_index| OutputSpec {
                image_index,
                forced: vec![],
            })
            .collect();
        let negative_prompt = match job.sampling.guided() {
            true => Some(self.tokenizer.negative_prompt(job.grid)?),
            false => None,
        };
        Ok(GenerateJob {
            priority: 0,
            mode: Mode::Image,
            prompt: self.tokenizer.image_prompt(&job.prompt, job.grid)?,
            negative_prompt,
            sampling: job.sampling,
            seed: job.seed,
            outputs,
            max_tokens: job.grid.tokens(),
            stop_ids: vec![],
            deadline: None,
            log_probs: false,
        })
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
            return Err(Error::GroupLost(reason));
        }
        for token in tokens {
            codes.push(self.tokenizer.image_code(token).ok_or_else(|| {
                Error::GroupLost(format!("token {token} of image {output} is no image code"))
            })?);
        }
        Ok(())
    }
}

/// Develops one picture and reports it.
async fn develop<D: Decoder>(
    decoder: Arc<D>,
    job: DecodeJob,
    drawn_after: Duration,
    events: mpsc::Sender<ImageEvent>,
) -> Result<()> {
    let start = Instant::now();
    let (index, codes) = (job.image_index as usize, job.codes.clone());
    let mut stream = decoder.decode(job).await?;
    loop {
        match stream.next().await?.ok_or_else(ended_early)? {
            DecodeEvent::Progress(stage) => {
                send(&events, ImageEvent::Decoding { index, stage }).await?;
            }
            DecodeEvent::Png(png) => {
                let decoded_in = start.elapsed();
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
    decoded.unwrap_or_else(|error| Err(Error::GroupLost(format!("a decode failed: {error}"))))
}

fn ended_early() -> Error {
    Error::GroupLost("a stream ended before its last event".into())
}
