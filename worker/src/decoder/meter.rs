//! What a decoder counts: for its load, which routing reads, and for its metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    queued: Gauge,
    running: Gauge,
    backlog: Gauge,
    steps: Counter,
    pictures: Counter,
    failures: Counter,
    rejected: Counter,
    step_seconds: Histogram,
    picture_seconds: Histogram,
    /// Bits of the mean seconds of a step; 0: no step has run.
    mean: Arc<AtomicU64>,
}

impl Default for DecoderMeter {
    fn default() -> Self {
        Self {
            jobs: Gauge::default(),
            queued: Gauge::default(),
            running: Gauge::default(),
            backlog: Gauge::default(),
            steps: Counter::default(),
            pictures: Counter::default(),
            failures: Counter::default(),
            rejected: Counter::default(),
            step_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            picture_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 16)),
            mean: Arc::new(AtomicU64::new(0)),
        }
    }
}

impl DecoderMeter {
    /// Makes its counters part of what an operator sees, as `xomni_decoder_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("decoder");
        let gauges = [
            ("jobs", "Jobs held: waiting and running", &self.jobs),
            (
                "queue_jobs",
                "Jobs that wait for their tokens or their turn",
                &self.queued,
            ),
            ("running_jobs", "Pictures being developed", &self.running),
            (
                "backlog_steps",
                "Denoising steps outstanding",
                &self.backlog,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        let counters = [
            ("denoise_steps", "Denoising steps done", &self.steps),
            ("pictures", "Pictures developed", &self.pictures),
            ("failures", "Pictures given up", &self.failures),
            (
                "rejected",
                "Jobs refused for want of a place",
                &self.rejected,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let histograms = [
            (
                "denoise_step_seconds",
                "Time of a denoising step",
                &self.step_seconds,
            ),
            (
                "picture_seconds",
                "Time from tokens to PNG of a picture, its queue left out",
                &self.picture_seconds,
            ),
        ];
        for (name, help, histogram) in histograms {
            registry.register(name, help, histogram.clone());
        }
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
        self.queued.inc();
        self.backlog.inc_by(steps);
        Expected {
            meter: self.clone(),
            started: AtomicBool::new(false),
            left: AtomicU64::new(steps.unsigned_abs()),
        }
    }

    /// A job was refused.
    pub(super) fn rejected(&self) {
        self.rejected.inc();
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

/// One job and its outstanding steps.
#[derive(Debug)]
pub(super) struct Expected {
    meter: DecoderMeter,
    started: AtomicBool,
    left: AtomicU64,
}

impl Expected {
    /// Counts its picture as running until the result is dropped.
    pub(super) fn start(&self) -> Running {
        let meter = self.meter.clone();
        if !self.started.swap(true, Ordering::Relaxed) {
            meter.queued.dec();
        }
        meter.running.inc();
        Running {
            meter,
            since: Instant::now(),
        }
    }

    fn step_done(&self) {
        let one = |left: u64| left.checked_sub(1);
        let order = Ordering::Relaxed;
        if self.left.fetch_update(order, order, one).is_ok() {
            self.meter.backlog.dec();
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.meter.jobs.dec();
        if !self.started.load(Ordering::Relaxed) {
            self.meter.queued.dec();
        }
        let left = self.left.load(Ordering::Relaxed);
        let left = i64::try_from(left).unwrap_or(i64::MAX);
        self.meter.backlog.dec_by(left);
    }
}

/// A picture that is being developed.
#[derive(Debug)]
pub(super) struct Running {
    meter: DecoderMeter,
    since: Instant,
}

impl Running {
    /// What it came to.
    pub(super) fn ended<T>(self, picture: &Result<T>) {
        if picture.is_err() {
            self.meter.failures.inc();
            return;
        }
        self.meter.pictures.inc();
        let took = self.since.elapsed().as_secs_f64();
        self.meter.picture_seconds.observe(took);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.meter.running.dec();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Metrics;

    #[test]
    fn a_job_waits_then_runs_then_is_gone() {
        let mut registry = Metrics::registry();
        let meter = DecoderMeter::default();
        meter.register(&mut registry);
        let shown = |lines: &[&str]| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
            for line in lines {
                assert!(text.lines().any(|shown| shown == *line), "{line} in {text}");
            }
        };
        let (first, second) = (meter.expect(3), meter.expect(2));
        shown(&[
            "xomni_decoder_jobs 2",
            "xomni_decoder_queue_jobs 2",
            "xomni_decoder_backlog_steps 5",
        ]);
        let running = first.start();
        let mut stopwatch = Stopwatch::default();
        let step = |step| Progress::Denoise { step, of: 3 };
        for part in [step(0), step(1), Progress::Vae] {
            stopwatch.lap(part, &first, &meter);
        }
        shown(&[
            "xomni_decoder_queue_jobs 1",
            "xomni_decoder_running_jobs 1",
            "xomni_decoder_backlog_steps 3",
            "xomni_decoder_denoise_steps_total 2",
            "xomni_decoder_denoise_step_seconds_count 2",
        ]);
        running.ended(&Ok(()));
        drop((first, second));
        meter.rejected();
        shown(&[
            "xomni_decoder_jobs 0",
            "xomni_decoder_queue_jobs 0",
            "xomni_decoder_running_jobs 0",
            "xomni_decoder_backlog_steps 0",
            "xomni_decoder_pictures_total 1",
            "xomni_decoder_picture_seconds_count 1",
            "xomni_decoder_rejected_total 1",
        ]);
    }
}
