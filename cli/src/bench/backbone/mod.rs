//! `xomni bench backbone`: a backbone on a device. Whether it is right comes first, then what its steps, its kernels, its
//! prefill and whole images take.

mod parts;
mod report;
mod shapes;

use std::{
    fmt, fs,
    path::PathBuf,
    slice,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use xomni_engine::{
    checkpoint::{BackboneConfig, Weights},
    decode::WeightsSource,
    measure::{Measured, Subject, validate},
    schedule::SchedulerConfig,
};
use xomni_worker::{
    group::sizes,
    roles::device::{DeviceKind, Devices, placement},
};

use self::{
    report::{Loaded, Report},
    shapes::Shapes,
};
use crate::{error::CliError, model};

/// Rows of a prefill step.
const PREFILL_ROWS: usize = 512;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Logits against the CPU's, bits against those of other runs and other batches
    Validation,
    /// Decode steps against the bandwidth of the same device, and what their ranks exchange
    Steps,
    /// The kernels of a decode step
    Kernels,
    /// A prompt
    Prefill,
    /// Whole images by the scheduler
    Images,
}

/// Arguments of `xomni bench backbone`.
#[derive(Debug, Args)]
#[command(after_help = "\
What is compared with this should run right before or after it on the same machine: cards of one kind differ in clocks and
temperature. One after the other: each takes most of the card's memory.")]
pub struct Arguments {
    /// Shapes: `7b`, those that are published, or those of an X-Omni directory
    #[arg(long, value_name = "7b|DIR", default_value = "7b")]
    shapes: Shapes,
    /// Weights, `random:SEED`
    #[arg(long, value_name = "SOURCE", default_value_t = model::Weights(WeightsSource::Random(1)))]
    weights: model::Weights,
    /// Layers; all by default
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    layers: Option<u32>,
    /// What it runs on: `cpu`, `cuda` (the first GPU) or `cuda:NUMBER`
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceKind::Cuda(0))]
    device: DeviceKind,
    /// GPUs, by number, for a rank each
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        conflicts_with = "device"
    )]
    devices: Vec<usize>,
    /// Have ranks exchange through NCCL, also where their GPUs reach each other's memory
    #[arg(long)]
    nccl: bool,
    /// What is measured
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "validation,steps,kernels,prefill,images"
    )]
    parts: Vec<Part>,
    /// Rows of decode steps
    #[arg(long, value_delimiter = ',', default_value = "1,8,64,128,256", value_parser = clap::value_parser!(u32).range(1..=4096))]
    rows: Vec<u32>,
    /// Positions that each row of a decode step reads
    #[arg(long, value_name = "POSITIONS", default_value_t = 2656, value_parser = clap::value_parser!(u32).range(1..))]
    context: u32,
    /// Seconds of decode steps, twice for each number of rows
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    step_seconds: f64,
    /// Tokens of the prompt that is prefilled
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prefill: u32,
    /// Tokens of whole images
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "1024,5184", value_parser = clap::value_parser!(u32).range(1..))]
    images: Vec<u32>,
    /// Images at once
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,128", value_parser = clap::value_parser!(u32).range(1..=4096))]
    concurrency: Vec<u32>,
    /// Tokens of each image's prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Guidance of images; other than 1, each takes two rows
    #[arg(long, value_name = "G", default_value_t = 1.0)]
    guidance_scale: f32,
    /// Seconds after which images that are not done are left, for each size and concurrency
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 15.0,
        allow_negative_numbers = true
    )]
    image_seconds: f64,
    /// Memory for keys and values, in MiB; by default what is needed, as far as there is room
    #[arg(long, value_name = "MIB")]
    kv_memory: Option<usize>,
    /// Write the figures to a file as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Arguments {
    /// Checks, measures and prints.
    pub async fn run(self) -> Result<(), CliError> {
        let measure = move || {
            let ranks = self.devices.len().max(1);
            let devices = Devices::open(&placement(self.device, &self.devices, ranks)?)?;
            match &devices {
                Devices::Cpu(cpu) => self.measure(slice::from_ref(cpu), &devices),
                #[cfg(feature = "cuda")]
                Devices::Cuda(gpus) => {
                    if self.nccl {
                        gpus.iter().for_each(|gpu| gpu.exchange_through_nccl());
                    }
                    self.measure(gpus, &devices)
                }
            }
        };
        tokio::task::spawn_blocking(measure).await?
    }

    fn measure<O: Measured>(&self, ranks: &[Arc<O>], devices: &Devices) -> Result<(), CliError> {
        let ops = &ranks[0];
        let WeightsSource::Random(seed) = self.weights.0 else {
            return Err(CliError::Argument("--weights: must be random:SEED".into()));
        };
        let seconds = |name: &str, value: f64| {
            Duration::try_from_secs_f64(value)
                .map_err(|_| CliError::Argument(format!("{name}: must be seconds, got {value}")))
        };
        let step_time = seconds("--step-seconds", self.step_seconds)?;
        let image_time = seconds("--image-seconds", self.image_seconds)?;
        let config = self.shapes.config(self.layers)?;
        let mut report = Report::new(
            ops.name()?,
            ranks.len(),
            self.shapes.to_string(),
            config.layers,
        );
        println!("{report}");

        if self.measures(Part::Validation) {
            let validation = validate(ranks, &config)?;
            report.validation = Some(validation.clone());
            self.show(&report, &report::Validated(&validation))?;
            if !validation.holds() {
                return Err(CliError::Wrong("the device computes something else".into()));
            }
        }
        if self.parts.iter().all(|part| *part == Part::Validation) {
            return Ok(());
        }
        let bandwidth = ops.read_bandwidth()?;
        let limits = self.limits(&config, devices)?;
        let start = Instant::now();
        let weights = Weights::random(seed, "backbone");
        let subject = Subject::load(ranks, &config, weights, limits, false)?;
        let used = |(free, total)| (total - free, total);
        let loaded = Loaded {
            read_bandwidth: bandwidth,
            seconds: start.elapsed().as_secs_f64(),
            memory: ops.memory()?.map(used),
            kv_positions: limits.blocks * limits.block_size,
        };
        report.loaded = Some(loaded.clone());
        self.show(&report, &loaded)?;
        self.measure_steps(&subject, bandwidth, step_time, &mut report)?;
        self.measure_exchanges(&subject, bandwidth, &mut report)?;
        self.measure_kernels(&subject, &mut report)?;
        self.measure_prefill(&subject, &mut report)?;
        self.measure_images(&subject, image_time, &mut report)
    }

    fn measures(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// Prints what is new in the report, and saves all of it.
    fn show(&self, report: &Report, new: &dyn fmt::Display) -> Result<(), CliError> {
        println!("{new}");
        match &self.json {
            Some(file) => fs::write(file, serde_json::to_string_pretty(report)? + "\n")
                .map_err(CliError::file(file)),
            None => Ok(()),
        }
    }

    /// Sequences that an image takes.
    fn rows_an_image(&self) -> usize {
        if self.guidance_scale == 1.0 { 1 } else { 2 }
    }

    /// Limits that have room for what is measured, as far as the device has.
    fn limits(
        &self,
        config: &BackboneConfig,
        devices: &Devices,
    ) -> Result<SchedulerConfig, CliError> {
        let most = |values: &[u32]| values.iter().copied().max().unwrap_or(0) as usize;
        let blocks = |positions: usize| positions.div_ceil(sizes::BLOCK_SIZE);
        let (mut rows, mut needed) = (1, 1);
        if self.measures(Part::Steps) || self.measures(Part::Kernels) {
            rows = rows.max(most(&self.rows));
            needed = needed.max(rows * blocks(self.context as usize));
        }
        if self.measures(Part::Prefill) {
            needed = needed.max(blocks(self.prefill as usize));
        }
        if self.measures(Part::Images) {
            let sequences = most(&self.concurrency) * self.rows_an_image();
            rows = rows.max(sequences);
            let positions = self.prompt as usize + most(&self.images);
            needed = needed.max(sequences * blocks(positions));
        }
        let block = sizes::BLOCK_SIZE * config.layers * config.kv_heads * config.head_dim * 2;
        let bytes = match self.kv_memory {
            Some(mebibytes) => mebibytes << 20,
            None => devices.kv_bytes(sizes::weight_bytes(config, self.devices.len().max(1)))?,
        };
        Ok(SchedulerConfig {
            max_rows: rows.max(PREFILL_ROWS),
            max_sequences: rows,
            max_queue: rows,
            blocks: needed
                .min(bytes / (block * devices.kv_value_bytes()))
                .max(1),
            block_size: sizes::BLOCK_SIZE,
            max_positions: config.max_positions,
            vocabulary: config.text_vocab + config.mm_vocab,
        })
    }
}
