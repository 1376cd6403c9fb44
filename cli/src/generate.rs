//! `xomni generate`: from prompts to PNG files, in this process.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use tokio::{sync::mpsc, task::JoinSet};
use xomni_coordinator::{
    pipeline::{Image, ImageEvent, Pipeline},
    request::{ImageJob, ImageRequest, Limits},
};
use xomni_engine::{
    checkpoint::{GenerationConfig, XOmniConfig},
    decode::WeightsSource,
};
use xomni_worker::{
    backbone::LocalBackbone,
    decoder::LocalDecoder,
    local::{LocalConfig, LocalModel},
};

use crate::{error::CliError, output, progress::Tracker, prompts};

/// The checkpoint that is used where none is named.
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/xomni-tiny");
/// Events of one request that may wait for the screen.
const EVENTS: usize = 256;

/// Arguments of `xomni generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// What to draw
    #[arg(required_unless_present = "prompts", conflicts_with = "prompts")]
    prompt: Option<String>,
    /// Draw every prompt of a JSONL file (objects with a `prompt`) as one batch
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Where to write the picture; several are numbered
    #[arg(short, long, value_name = "FILE", default_value = "xomni.png")]
    output: PathBuf,
    /// Width and height in pixels, multiples of 16, or auto
    #[arg(long, value_name = "WxH")]
    size: Option<String>,
    /// Pictures of each prompt
    #[arg(long)]
    n: Option<usize>,
    /// Key of all randomness: the same seed draws the same pictures
    #[arg(long)]
    seed: Option<u64>,
    /// Sampling temperature; 0 is greedy
    #[arg(long)]
    temperature: Option<f32>,
    /// Candidates kept by score; 0 keeps all
    #[arg(long)]
    top_k: Option<usize>,
    /// Nucleus mass
    #[arg(long)]
    top_p: Option<f32>,
    /// Smallest kept probability relative to the largest
    #[arg(long)]
    min_p: Option<f32>,
    /// Guidance in token space; 1 is off
    #[arg(long)]
    guidance_scale: Option<f32>,
    /// Denoising steps of the decoder
    #[arg(long, value_name = "STEPS")]
    num_inference_steps: Option<usize>,
    /// X-Omni checkpoint directory
    #[arg(long, value_name = "DIR", requires = "flux")]
    model: Option<PathBuf>,
    /// FLUX.1-dev directory (text encoders, VAE, scheduler)
    #[arg(long, value_name = "DIR", requires = "model")]
    flux: Option<PathBuf>,
    /// `checkpoint`, or `random:SEED` to run the configuration without weight files
    #[arg(long, value_name = "SOURCE", default_value = "checkpoint", value_parser = weights)]
    weights: WeightsSource,
    /// Tensor-parallel degree: ranks run as threads
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    tp: usize,
    /// Memory for keys and values, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    kv_memory: usize,
    /// Prompts drawn at a time; all by default
    #[arg(long, value_name = "PROMPTS")]
    concurrency: Option<usize>,
}

fn weights(text: &str) -> Result<WeightsSource, String> {
    if text == "checkpoint" {
        return Ok(WeightsSource::Checkpoint);
    }
    let seed = text
        .strip_prefix("random:")
        .and_then(|seed| seed.parse().ok());
    seed.map(WeightsSource::Random)
        .ok_or_else(|| "must be checkpoint or random:SEED".into())
}

type LocalPipeline = Pipeline<LocalBackbone, LocalDecoder>;

impl Generate {
    /// Draws, saves and shows the pictures.
    pub async fn run(self) -> Result<(), CliError> {
        output::check(&self.output)?;
        if self.concurrency == Some(0) {
            return Err(CliError::Argument(
                "--concurrency: must be at least 1, got 0".into(),
            ));
        }
        let tiny = Path::new(TINY);
        let model = self.model.clone().unwrap_or_else(|| tiny.join("x-omni"));
        let flux = self.flux.clone().unwrap_or_else(|| tiny.join("flux"));
        let config = XOmniConfig::open(&model)?;
        let limits = Limits::new(&config, &GenerationConfig::open(&model, &config)?);
        let jobs = self.jobs(&limits)?;
        if self.model.is_none() {
            eprintln!(
                "no --model: drawing with the tiny test checkpoint, whose pictures are noise"
            );
        }

        let start = Instant::now();
        let local = LocalConfig {
            model,
            flux,
            weights: self.weights,
            ranks: self.tp,
            kv_bytes: self.kv_memory << 20,
            max_queue: jobs.len(),
        };
        let opened = tokio::task::spawn_blocking(move || LocalModel::open(&local)).await;
        let model = opened.map_err(|error| CliError::Argument(error.to_string()))??;
        let loaded_in = start.elapsed();
        let steps = self
            .num_inference_steps
            .unwrap_or(config.decoder.num_inference_steps);
        let pipeline = Pipeline::new(model.tokenizer, model.backbone, Arc::new(model.decoder));
        self.draw(Arc::new(pipeline), jobs, steps, loaded_in).await
    }

    /// One validated job for each prompt, all of the same seed.
    fn jobs(&self, limits: &Limits) -> Result<Vec<ImageJob>, CliError> {
        let prompts = match (&self.prompt, &self.prompts) {
            (Some(prompt), _) => vec![prompt.clone()],
            (None, Some(file)) => prompts::read(file)?,
            (None, None) => vec![],
        };
        let mut seed = self.seed;
        let mut job = |prompt| -> Result<ImageJob, CliError> {
            let request = ImageRequest {
                prompt,
                size: self.size.clone(),
                n: self.n,
                seed,
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                guidance_scale: self.guidance_scale,
                num_inference_steps: self.num_inference_steps,
                priority: 0,
            };
            let job = request.validate(limits)?;
            seed = Some(job.seed);
            Ok(job)
        };
        prompts.into_iter().map(&mut job).collect()
    }

    async fn draw(
        &self,
        pipeline: Arc<LocalPipeline>,
        jobs: Vec<ImageJob>,
        steps: usize,
        loaded_in: Duration,
    ) -> Result<(), CliError> {
        let seed = jobs.first().map_or(0, |job| job.seed);
        let first: Vec<usize> = jobs
            .iter()
            .scan(0, |sum, job| Some(std::mem::replace(sum, *sum + job.n)))
            .collect();
        let pictures: usize = jobs.iter().map(|job| job.n).sum();
        let tokens = jobs.iter().map(|job| job.n * job.grid.tokens()).sum();
        let mut tracker = Tracker::new(tokens, pictures * steps);

        let mut waiting = jobs.into_iter().enumerate();
        let at_once = self.concurrency.unwrap_or(usize::MAX);
        let (events, mut inbox) = mpsc::channel(EVENTS);
        let mut requests = JoinSet::new();
        let mut done: Vec<Option<Image>> = vec![None; pictures];
        loop {
            while requests.len() < at_once
                && let Some((request, job)) = waiting.next()
            {
                requests.spawn(follow(pipeline.clone(), request, job, events.clone()));
            }
            tokio::select! {
                Some((request, event)) = inbox.recv() => {
                    tracker.on_event(request, &event);
                    if let ImageEvent::Done(image) = event {
                        let picture = first[request] + image.index;
                        output::write(&output::numbered(&self.output, picture, pictures), &image.png)?;
                        done[picture] = Some(image);
                    }
                    if done.iter().all(Option::is_some) {
                        break;
                    }
                }
                Some(result) = requests.join_next() => {
                    result.map_err(|error| CliError::Argument(error.to_string()))??;
                }
            }
        }
        let summary = tracker.finish(loaded_in);
        for image in done.iter().flatten() {
            output::show(&image.png);
        }
        println!("{summary}");
        for picture in 0..pictures {
            println!(
                "{}",
                output::numbered(&self.output, picture, pictures).display()
            );
        }
        println!("seed {seed}");
        Ok(())
    }
}

/// Draws one job, telling its events under its number.
async fn follow(
    pipeline: Arc<LocalPipeline>,
    request: usize,
    job: ImageJob,
    events: mpsc::Sender<(usize, ImageEvent)>,
) -> Result<(), CliError> {
    let (sender, mut receiver) = mpsc::channel(EVENTS);
    let forward = async {
        while let Some(event) = receiver.recv().await {
            if events.send((request, event)).await.is_err() {
                return;
            }
        }
    };
    let (result, ()) = tokio::join!(pipeline.draw(job, sender), forward);
    Ok(result?)
}
