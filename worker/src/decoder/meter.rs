//! What a decoder counts: for its load, which routing reads, and for its metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use prometheus_client::{
    metrics::{
        counter::Counter,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use xomni_engine::{Result, decode::Progress};

/// Share of the newest step in the mean rate.
const NEWEST: f64 = 0.1;

/// Counters of a decoder. Clones count together.
#[derive(Debug, Clone)]
pub struct DecoderMeter {
    jobs: Gauge,
    running: Gauge,
    backlog: Gauge,
    steps: Counter,
    pictures: Counter,
    failures: Counter,
    step_seconds: Histogram,
    /// Bits of the mean seconds of a step; 0: no step has run.
    mean: Arc<AtomicU64>,
}

impl Default for DecoderMeter {
    fn default() -> Self {
        Self {
            jobs: Gauge::default(),
            running: Gauge::default(),
            backlog: Gauge::default(),
            steps: Counter::default(),
            pictures: Counter::default(),
            failures: Counter::default(),
            step_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            mean: Arc::new(AtomicU64::new(0)),
        }
    }
}

impl DecoderMeter {
    /// Makes its counters part of what an operator sees, as `xomni_decoder_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("decoder");
        registry.register("jobs", "Jobs held: waiting and running", self.jobs.clone());
        registry.register(
            "running_jobs",
            "Pictures being developed",
            self.running.clone(),
        );
        registry.register(
            "backlog_steps",
            "Denoising steps outstanding",
            self.backlog.clone(),
        );
        registry.register("steps", "Denoising steps done", self.steps.clone());
        registry.register("pictures", "Pictures developed", self.pictures.clone());
        registry.register("failures", "Pictures given up", self.failures.clone());
        let step_seconds = self.step_seconds.clone();
        registry.register("step_seconds", "Time of a denoising step", step_seconds);
    }

    pub(super) fn running(&self) -> u64 {
        self.running.get().try_into().unwrap_or(0)
    }

    pub(super) fn backlog(&self) -> u64 {
        self.backlog.get().try_into().unwrap_or(0)
    }

    /// Denoising steps a second, lately; 0: none has run.
    pub(super) fn rate(&self) -> f64 {
        let mean = f64::from_bits(self.mean.load(Ordering::Relaxed));
        if mean > 0.0 { 1.0 / mean } else { 0.0 }
    }

    /// Counts a job of `steps` steps until the result is dropped.
    pub(super) fn expect(&self, steps: u64) -> Expected {
        let steps = i64::try_from(steps).unwrap_or(i64::MAX);
        self.jobs.inc();
        self.backlog.inc_by(steps);
        let (jobs, backlog) = (self.jobs.clone(), self.backlog.clone());
        Expected {
            jobs,
            backlog,
            left: AtomicU64::new(steps.unsigned_abs()),
        }
    }

    /// Counts a running picture until the result is dropped.
    pub(super) fn start(&self) -> Running {
        self.running.inc();
        Running(self.running.clone())
    }

    pub(super) fn ended<T>(&self, picture: &Result<T>) {
        match picture {
            Ok(_) => self.pictures.inc(),
            Err(_) => self.failures.inc(),
        };
    }

    fn step(&self, seconds: f64) {
        self.steps.inc();
        self.step_seconds.observe(seconds);
        let mean = f64::from_bits(self.mean.load(Ordering::Relaxed));
        let mean = if mean > 0.0 {
            mean + NEWEST * (seconds - mean)
        } else {
            seconds
        };
        self.mean.store(mean.to_bits(), Ordering::Relaxed);
    }
}

/// The outstanding steps of one job.
#[derive(Debug)]
pub(super) struct Expected {
    jobs: Gauge,
    backlog: Gauge,
    left: AtomicU64,
}

impl Expected {
    fn step_done(&self) {
        let one = |left: u64| left.checked_sub(1);
        let order = Ordering::Relaxed;
        if self.left.fetch_update(order, order, one).is_ok() {
            self.backlog.dec();
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.jobs.dec();
        let left = self.left.load(Ordering::Relaxed);
        self.backlog.dec_by(i64::try_from(left).unwrap_or(i64::MAX));
    }
}

/// A picture that is being developed.
#[derive(Debug)]
pub(super) struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Measures the denoising steps of one picture.
#[derive(Debug, Default)]
pub(super) struct Stopwatch(Option<Instant>);

impl Stopwatch {
    /// A part begins: the step before it, if it was one, is done.
    pub(super) fn lap(&mut self, begins: Progress, expected: &Expected, meter: &DecoderMeter) {
        if let Some(began) = self.0.take() {
            expected.step_done();
            meter.step(began.elapsed().as_secs_f64());
        }
        if matches!(begins, Progress::Denoise { .. }) {
            self.0 = Some(Instant::now());
        }
    }
}
