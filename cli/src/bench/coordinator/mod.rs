//! `xomni bench coordinator`: many streams at once through a real coordinator, drawn by synthetic
//! workers. What is measured is checked first: every stream must be complete, in order and of the
//! right bytes.

mod cluster;
mod drawing;
mod report;
mod stamps;
mod streams;
mod window;
mod workers;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::sync::watch;
use xomni_engine::{
    checkpoint::XOmniConfig,
    text::{Grid, Tokenizer},
};

use self::{
    cluster::{Cluster, Size},
    drawing::Drawing,
    report::{Cost, Report},
    stamps::Stamps,
    streams::{Progress, Seen, Server, draw},
    window::Window,
    workers::{Run, Synthetic},
};
use super::{distribution::Distribution, usage::Usage};
use crate::{error::CliError, model};

/// Frames of a stream in the run that is only checked, and not timed.
const CHECKED_FRAMES: usize = 16;
/// Share of a run in which its streams begin.
const RAMP: f64 = 0.25;
const MIB: f64 = (1 << 20) as f64;

/// Arguments of `xomni bench coordinator`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Streams at once
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    streams: u32,
    /// Frames a second of each stream
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Seconds that the tokens of a picture take
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Side of the square pictures, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=128))]
    side: u32,
    /// Connections that the streams share; one each by default
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: Option<u32>,
    /// Backbone groups
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    groups: u32,
    /// Decoders
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    decoders: u32,
    /// X-Omni directory whose tokenizer the coordinator uses
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Checks, measures and prints.
    pub async fn run(self) -> Result<(), CliError> {
        let model = self.model.clone().unwrap_or_else(model::default_x_omni);
        let config = XOmniConfig::open(&model)?;
        let drawing = self.drawing(config.encoder.codebook_size as u32)?;
        let report = self.measure(&model, &config, drawing).await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            println!("{report}");
        }
        Ok(())
    }

    fn drawing(&self, codebook: u32) -> Result<Drawing, CliError> {
        let grid = Grid::new(self.side, self.side);
        let frames = (self.rate * self.seconds) as usize;
        if frames > grid.tokens() {
            return Err(CliError::Argument(format!(
                "--seconds: {} frames/s for {} s must be at most the {} tokens of --side {}",
                self.rate,
                self.seconds,
                grid.tokens(),
                self.side
            )));
        }
        Ok(Drawing {
            grid,
            codebook,
            frames,
            period: Duration::from_secs(1) / self.rate,
        })
    }

    async fn measure(
        &self,
        model: &Path,
        config: &XOmniConfig,
        drawing: Drawing,
    ) -> Result<Report, CliError> {
        let streams = self.streams as usize;
        let quick = Drawing {
            frames: CHECKED_FRAMES.min(drawing.frames),
            period: Duration::from_millis(1),
            ..drawing
        };
        let run = |drawing: Drawing| {
            let stamps = Stamps::new(streams, drawing.frames);
            Arc::new(Run { drawing, stamps })
        };
        let (runs, current) = watch::channel(run(quick));
        let synthetic = Synthetic {
            tokenizer: Arc::new(Tokenizer::open(model, config)?),
            run: current,
        };
        let size = Size {
            groups: self.groups as usize,
            decoders: self.decoders as usize,
            streams,
        };
        let cluster = Cluster::start(model, &synthetic, size).await?;
        let process = cluster.process()?;
        let idle = Usage::of(process)?;
        let connections = self.connections.map_or(streams, |count| count as usize);
        let coordinator = Server::Coordinator(cluster.channels(connections)?);
        let workers = Server::Workers(cluster.backbones()?);

        eprintln!("checking {streams} streams");
        let progress = Arc::new(Progress::default());
        let current = runs.borrow().clone();
        let seen = draw(&coordinator, &current, streams, Duration::ZERO, &progress).await?;
        check(&quick, &seen)?;

        let ramp = Duration::from_secs(self.seconds.into()).mul_f64(RAMP);
        eprintln!("measuring without the coordinator");
        let current = run(drawing);
        runs.send_replace(current.clone());
        let progress = Arc::new(Progress::default());
        let direct = draw(&workers, &current, streams, ramp, &progress).await?;

        eprintln!("measuring through the coordinator");
        let current = run(drawing);
        runs.send_replace(current.clone());
        let progress = Arc::new(Progress::default());
        let (seen, window) = tokio::try_join!(
            draw(&coordinator, &current, streams, ramp, &progress),
            Window::observe(process, streams, &progress),
        )?;
        let picture_bytes = check(&drawing, &seen)?;
        let per_1000 = 1000.0 / streams as f64;
        Ok(Report {
            streams,
            rate: self.rate.into(),
            frames_per_second: window.frames_per_second,
            connections,
            groups: size.groups,
            picture_bytes,
            latency_ms: ages(seen),
            without_coordinator_ms: ages(direct),
            coordinator: Cost {
                cores: window.cores,
                cores_per_1000_streams: window.cores * per_1000,
                microseconds_per_frame: window.cores * 1e6 / window.frames_per_second,
                idle_mib: idle.resident as f64 / MIB,
                running_mib: window.resident as f64 / MIB,
                mib_per_1000_streams: window.resident.saturating_sub(idle.resident) as f64 / MIB
                    * per_1000,
            },
        })
    }
}

/// Checks the pictures of a run and returns how many bytes they have.
fn check(drawing: &Drawing, seen: &[Seen]) -> Result<usize, CliError> {
    for stream in seen {
        drawing
            .check(stream.seed, &stream.picture)
            .map_err(|error| CliError::Wrong(format!("stream {}: {error}", stream.seed)))?;
    }
    Ok(seen.iter().map(|stream| stream.picture.len()).sum())
}

fn ages(seen: Vec<Seen>) -> Distribution {
    Distribution::of(seen.into_iter().flat_map(|stream| stream.ages).collect())
}
