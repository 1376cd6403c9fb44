//! `xomni bench serve`: the images endpoint of a server under load, over HTTP.

mod arrivals;
mod report;
mod request;
mod sse;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{ArgGroup, Args};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tonic::transport::Channel;
use xomni_worker::process::ClientTls;

use self::{
    arrivals::{Load, poisson},
    report::Report,
    request::{Ask, Outcome},
};
use crate::{client, error::CliError, prompts};

/// Connections that requests share.
const CONNECTIONS: usize = 8;

/// Arguments of `xomni bench serve`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("load").args(["rate", "concurrency"]))]
pub struct Arguments {
    /// The server
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8400")]
    server: String,
    #[command(flatten)]
    tls: ClientTls,
    /// Key that the server asks for
    #[arg(
        long,
        value_name = "KEY",
        env = "XOMNI_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// JSONL file whose objects have a `prompt`; requests take them in turn
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Requests; one of each prompt by default
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: Option<u32>,
    /// Requests a second, as a Poisson process
    #[arg(long, value_name = "REQUESTS")]
    rate: Option<f64>,
    /// Requests at once
    #[arg(long, value_name = "REQUESTS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// Width and height in pixels, or auto
    #[arg(long, value_name = "WxH")]
    size: Option<String>,
    /// Pictures of each request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10))]
    n: u32,
    /// Seed of the first request; those of others follow it, and arrivals follow from it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Denoising steps of the decoder
    #[arg(long, value_name = "STEPS")]
    num_inference_steps: Option<u32>,
    /// Previews of each picture
    #[arg(long, default_value_t = 0)]
    partial_images: u32,
    /// Seconds within which a picture is of use: goodput counts those
    #[arg(long, value_name = "SECONDS")]
    limit: Option<f64>,
    /// Seconds after which a request is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Puts the load on the server and prints what came of it.
    pub async fn run(self) -> Result<(), CliError> {
        let load = self.load()?;
        let prompts = prompts::read(&self.prompts)?;
        let requests = self.requests.map_or(prompts.len(), |count| count as usize);
        let connections = (0..CONNECTIONS).map(|_| client::channel(&self.server, &self.tls));
        let run = Run {
            ask: Ask {
                size: self.size.clone(),
                n: self.n as usize,
                steps: self.num_inference_steps,
                partial_images: self.partial_images,
                api_key: self.api_key.clone(),
                timeout: Duration::from_secs(self.timeout),
            },
            seed: self.seed,
            prompts,
            channels: connections.collect::<Result<_, _>>()?,
        };
        let start = Instant::now();
        let outcomes = Arc::new(run).all(load, requests).await?;
        let seconds = start.elapsed().as_secs_f64();
        let report = Report::of(&outcomes, self.n as usize, seconds, self.limit);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            println!("{report}");
        }
        match report.succeeded {
            0 => Err(CliError::Wrong("no request succeeded".into())),
            _ => Ok(()),
        }
    }

    fn load(&self) -> Result<Load, CliError> {
        let positive = |name: &str, value: Option<f64>| match value {
            Some(value) if !(value > 0.0 && value.is_finite()) => Err(CliError::Argument(format!(
                "{name}: must be a positive number, got {value}"
            ))),
            value => Ok(value),
        };
        positive("--limit", self.limit)?;
        Ok(match positive("--rate", self.rate)? {
            Some(rate) => Load::Rate(rate),
            None => Load::Concurrency(self.concurrency as usize),
        })
    }
}

/// What requests have in common.
#[derive(Debug)]
struct Run {
    ask: Ask,
    seed: u64,
    prompts: Vec<String>,
    channels: Vec<Channel>,
}

impl Run {
    /// Sends all requests and waits for what becomes of them.
    async fn all(self: Arc<Self>, load: Load, requests: usize) -> Result<Vec<Outcome>, CliError> {
        let start = Instant::now();
        let arrivals = match load {
            Load::Rate(rate) => poisson(rate, self.seed, requests),
            Load::Concurrency(_) => vec![Duration::ZERO; requests],
        };
        let most = match load {
            Load::Rate(_) => requests,
            Load::Concurrency(most) => most,
        };
        let mut running = JoinSet::new();
        let mut outcomes = Vec::with_capacity(requests);
        for (index, arrival) in arrivals.into_iter().enumerate() {
            while running.len() >= most
                && let Some(outcome) = running.join_next().await
            {
                outcomes.push(outcome?);
            }
            sleep_until(start + arrival).await;
            let run = self.clone();
            running.spawn(async move { run.one(index).await });
        }
        while let Some(outcome) = running.join_next().await {
            outcomes.push(outcome?);
        }
        Ok(outcomes)
    }

    async fn one(&self, index: usize) -> Outcome {
        let prompt = &self.prompts[index % self.prompts.len()];
        let channel = self.channels[index % self.channels.len()].clone();
        let seed = self.seed.wrapping_add(index as u64);
        self.ask.send(channel, prompt, seed).await
    }
}
