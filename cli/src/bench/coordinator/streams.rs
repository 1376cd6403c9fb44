//! The clients of a run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tonic::transport::Channel;
use xomni_engine::{
    sampling::SamplingParams,
    schedule::{Mode, OutputSpec},
};
use xomni_proto::images::{GenerateImagesRequest, image_event::Event, images_client::ImagesClient};
use xomni_worker::{
    api::{Backbone, GenerateJob},
    client::RemoteBackbone,
};

use super::workers::Run;
use crate::error::CliError;

/// What a stream draws; its tokens are made up whatever it says.
const PROMPT: &str = "A lighthouse at night, with a lamp that says OPEN";

/// How far the streams of a run are.
#[derive(Debug, Default)]
pub struct Progress {
    /// Those that have had a frame.
    pub begun: AtomicUsize,
    /// Those that have had their last.
    pub ended: AtomicUsize,
    /// Frames that have arrived.
    pub frames: AtomicUsize,
}

/// What one stream has seen.
#[derive(Debug)]
pub struct Seen {
    /// Its seed.
    pub seed: u64,
    /// From the sending of each frame to its arrival, in milliseconds.
    pub ages: Vec<f64>,
    /// The picture; empty where only tokens are drawn.
    pub picture: Vec<u8>,
}

/// Whom streams ask.
#[derive(Debug, Clone)]
pub enum Server {
    /// A coordinator, over these connections in turn.
    Coordinator(Vec<Channel>),
    /// Workers themselves, in turn: what remains is what the measuring costs.
    Workers(Vec<RemoteBackbone>),
}

/// Draws a picture on each of `streams` streams, which begin one after the other within `ramp`.
///
/// # Errors
/// [`CliError::Server`] of the first stream that fails, [`CliError::Wrong`] of the first whose
/// frames do not come in order and to the end.
pub async fn draw(
    server: &Server,
    run: &Arc<Run>,
    streams: usize,
    ramp: Duration,
    progress: &Arc<Progress>,
) -> Result<Vec<Seen>, CliError> {
    let start = Instant::now();
    let mut drawing = JoinSet::new();
    for index in 0..streams {
        let (server, run) = (server.clone(), run.clone());
        let frames = Frames {
            seed: index as u64,
            run: run.clone(),
            tokens: 0,
            ages: Vec::with_capacity(run.drawing.frames),
            progress: progress.clone(),
        };
        drawing.spawn(async move {
            tokio::time::sleep_until(start + ramp.mul_f64(index as f64 / streams as f64)).await;
            match server {
                Server::Coordinator(channels) => {
                    through_coordinator(channels[index % channels.len()].clone(), frames).await
                }
                Server::Workers(workers) => {
                    from_worker(&workers[index % workers.len()], frames).await
                }
            }
        });
    }
    let mut seen = Vec::with_capacity(streams);
    while let Some(stream) = drawing.join_next().await {
        seen.push(stream??);
    }
    Ok(seen)
}

async fn through_coordinator(channel: Channel, mut frames: Frames) -> Result<Seen, CliError> {
    let grid = frames.run.drawing.grid;
    let request = GenerateImagesRequest {
        prompt: PROMPT.into(),
        size: Some(format!("{}x{}", grid.width * 16, grid.height * 16)),
        seed: Some(frames.seed),
        num_inference_steps: Some(1),
        ..GenerateImagesRequest::default()
    };
    let stream = ImagesClient::new(channel).generate(request).await?;
    let mut stream = stream.into_inner();
    let mut picture = vec![];
    let mut complete = false;
    while let Some(event) = stream.message().await? {
        match event.event {
            Some(Event::Drawing(drawing)) => frames.on_tokens(drawing.done as usize)?,
            Some(Event::Picture(chunk)) => {
                picture.extend_from_slice(&chunk.data);
                complete |= chunk.last;
            }
            Some(Event::Accepted(_) | Event::Decoding(_) | Event::Partial(_)) | None => {}
        }
    }
    if !complete {
        return Err(frames.wrong("has no picture"));
    }
    frames.end(picture)
}

async fn from_worker(worker: &RemoteBackbone, mut frames: Frames) -> Result<Seen, CliError> {
    let job = GenerateJob {
        request_id: frames.seed.to_string(),
        attempt: 0,
        priority: 0,
        mode: Mode::Image,
        prompt: vec![0],
        negative_prompt: None,
        sampling: SamplingParams::GREEDY,
        seed: frames.seed,
        outputs: vec![OutputSpec {
            image_index: 0,
            forced: vec![],
        }],
        max_tokens: frames.run.drawing.grid.tokens(),
        stop_ids: vec![],
        deadline: None,
        log_probs: false,
    };
    let mut stream = worker.generate(job).await?;
    while let Some(frame) = stream.next().await? {
        frames.on_tokens(frame.first as usize + frame.tokens.len())?;
    }
    frames.end(vec![])
}

/// The frames of one stream as they arrive.
struct Frames {
    seed: u64,
    run: Arc<Run>,
    /// Tokens so far.
    tokens: usize,
    ages: Vec<f64>,
    progress: Arc<Progress>,
}

impl Frames {
    /// There are `tokens` now: every frame that brought some of them has arrived.
    fn on_tokens(&mut self, tokens: usize) -> Result<(), CliError> {
        if tokens <= self.tokens || tokens > self.run.drawing.grid.tokens() {
            return Err(self.wrong(&format!("has {tokens} tokens after {}", self.tokens)));
        }
        let count = |counter: &AtomicUsize| counter.fetch_add(1, Ordering::Relaxed);
        if self.tokens == 0 {
            count(&self.progress.begun);
        }
        self.tokens = tokens;
        for frame in self.ages.len()..self.run.drawing.frames_of(tokens) {
            let age = self.run.stamps.age(self.seed, frame);
            let age = age.ok_or_else(|| self.wrong("has a frame that was not sent"))?;
            self.ages.push(age);
            count(&self.progress.frames);
        }
        if self.ages.len() == self.run.drawing.frames {
            count(&self.progress.ended);
        }
        Ok(())
    }

    fn end(self, picture: Vec<u8>) -> Result<Seen, CliError> {
        if self.ages.len() != self.run.drawing.frames {
            return Err(self.wrong(&format!("ended after {} frames", self.ages.len())));
        }
        Ok(Seen {
            seed: self.seed,
            ages: self.ages,
            picture,
        })
    }

    fn wrong(&self, what: &str) -> CliError {
        CliError::Wrong(format!("stream {} {what}", self.seed))
    }
}

#[cfg(test)]
mod tests {
    use xomni_engine::text::Grid;

    use super::*;
    use crate::bench::coordinator::{drawing::Drawing, stamps::Stamps};

    /// Stream 0 of 16 tokens in four frames, of which `sent` were sent.
    fn frames(sent: usize) -> Frames {
        let drawing = Drawing {
            grid: Grid::new(4, 4),
            codebook: 2,
            frames: 4,
            period: Duration::ZERO,
        };
        let stamps = Stamps::new(1, 4);
        (0..sent).for_each(|frame| stamps.send(0, frame));
        Frames {
            seed: 0,
            run: Arc::new(Run { drawing, stamps }),
            tokens: 0,
            ages: vec![],
            progress: Arc::default(),
        }
    }

    #[test]
    fn frames_count_when_their_last_token_is_there() {
        let mut frames = frames(4);
        for (tokens, counted) in [(4, 1), (7, 1), (12, 3), (16, 4)] {
            frames.on_tokens(tokens).expect("in order");
            assert_eq!(frames.ages.len(), counted);
        }
        let progress = frames.progress.clone();
        assert_eq!(progress.ended.load(Ordering::Relaxed), 1);
        assert_eq!(frames.end(vec![]).expect("complete").ages.len(), 4);
    }

    #[test]
    fn streams_that_are_not_as_sent_are_wrong() {
        assert!(frames(4).on_tokens(17).is_err(), "too many");
        assert!(frames(1).on_tokens(8).is_err(), "never sent");
        let mut early = frames(4);
        early.on_tokens(8).expect("in order");
        assert!(early.on_tokens(8).is_err(), "twice");
        assert!(early.on_tokens(4).is_err(), "backwards");
        assert!(early.end(vec![]).is_err(), "not complete");
    }
}
