//! `xomni generate`: from prompts to PNG files, in this process or on a server.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use xomni_coordinator::{
    pipeline::{Pipeline, generate_job},
    request::{ChatModel, ImageJob, ImageRequest, Limits},
};
use xomni_worker::{
    backbone::LocalBackbone, decoder::LocalDecoder, local::PreparedModel, process::ClientTls,
};

use crate::{
    batch::Batch, client, error::CliError, local::LocalArguments, output, progress::Tracker,
    prompts,
};

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
    #[command(flatten)]
    local: LocalArguments,
    /// Prompts drawn at a time; all by default
    #[arg(long, value_name = "PROMPTS")]
    concurrency: Option<usize>,
    /// Draw on a coordinator instead of in this process
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["model", "flux", "tp", "kv_memory"])]
    server: Option<String>,
    #[command(flatten)]
    tls: ClientTls,
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
        let requests = self.requests()?;
        if let Some(server) = self.server.clone() {
            return self.draw_on(&server, requests).await;
        }
        let local = self.local.config()?;
        let opened = tokio::task::spawn_blocking(|| PreparedModel::open(local)).await;
        let model = opened??;
        let jobs = jobs(requests, &Limits::new(&model.config, &model.generation))?;
        for job in &jobs {
            model.check(generate_job(&model.tokenizer, job)?)?;
        }
        self.local.model.announce();

        let start = Instant::now();
        let model = tokio::task::spawn_blocking(|| model.load()).await??;
        let loaded_in = start.elapsed();
        let steps = self
            .num_inference_steps
            .unwrap_or(model.config.decoder.num_inference_steps);
        let chat = ChatModel::new(
            &model.config,
            &model.generation,
            model.tokenizer,
            model.template,
        );
        let pipeline: LocalPipeline =
            Pipeline::new(Arc::new(chat), model.backbone, Arc::new(model.decoder));
        let pipeline = Arc::new(pipeline);
        let counts = jobs.iter().map(|job| job.n).collect();
        let tokens = jobs.iter().map(|job| job.n * job.grid.tokens()).sum();
        let pictures: usize = jobs.iter().map(|job| job.n).sum();
        let tracker = Tracker::new(tokens, pictures * steps);
        let draw = |request: usize, events| {
            let (pipeline, job) = (pipeline.clone(), jobs[request].clone());
            async move {
                let seed = job.seed;
                pipeline.draw(job, events).await?;
                Ok(seed)
            }
        };
        self.batch(counts).run(tracker, loaded_in, draw).await
    }

    /// Draws on a coordinator.
    async fn draw_on(&self, server: &str, requests: Vec<ImageRequest>) -> Result<(), CliError> {
        let channel = client::channel(server, &self.tls)?;
        let counts = requests
            .iter()
            .map(|request| request.n.unwrap_or(1))
            .collect();
        let draw = |request: usize, events| {
            client::draw(channel.clone(), requests[request].clone(), events)
        };
        self.batch(counts)
            .run(Tracker::new(0, 0), Duration::ZERO, draw)
            .await
    }

    fn batch(&self, counts: Vec<usize>) -> Batch {
        Batch {
            counts,
            output: self.output.clone(),
            concurrency: self.concurrency.unwrap_or(usize::MAX),
        }
    }

    /// One request for each prompt.
    fn requests(&self) -> Result<Vec<ImageRequest>, CliError> {
        let prompts = match (&self.prompt, &self.prompts) {
            (Some(prompt), _) => vec![prompt.clone()],
            (None, Some(file)) => prompts::read(file)?,
            (None, None) => vec![],
        };
        let request = |prompt| ImageRequest {
            prompt,
            size: self.size.clone(),
            n: self.n,
            seed: self.seed,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            guidance_scale: self.guidance_scale,
            num_inference_steps: self.num_inference_steps,
            partial_images: None,
            priority: 0,
        };
        Ok(prompts.into_iter().map(request).collect())
    }
}

/// The validated jobs of requests, all of the seed of the first.
fn jobs(requests: Vec<ImageRequest>, limits: &Limits) -> Result<Vec<ImageJob>, CliError> {
    let mut shared = None;
    let mut job = |mut request: ImageRequest| -> Result<ImageJob, CliError> {
        request.seed = request.seed.or(shared);
        let job = request.validate(limits)?;
        shared = Some(job.seed);
        Ok(job)
    };
    requests.into_iter().map(&mut job).collect()
}
