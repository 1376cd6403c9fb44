//! The parts of the measurement, each left out unless it is asked for.

use std::time::Duration;

use xomni_engine::measure::{ImageLoad, Measured, Subject};

use super::{
    Arguments, Part,
    report::{Exchanges, Images, Kernels, Prefill, Report, Steps},
};
use crate::{
    bench::{distribution::Distribution, usage::Usage},
    error::CliError,
};

/// Prefills; the median counts.
const PREFILLS: usize = 5;
/// How long steps are measured that images are compared with.
const COMPARED: Duration = Duration::from_millis(300);

impl Arguments {
    pub(super) fn measure_steps<O: Measured>(
        &self,
        subject: &Subject<O>,
        bandwidth: f64,
        time: Duration,
        report: &mut Report,
    ) -> Result<(), CliError> {
        if !self.measures(Part::Steps) {
            return Ok(());
        }
        println!("{}", Steps::HEADER);
        let process = std::process::id();
        for rows in self.rows.iter().map(|&rows| rows as usize) {
            let context = self.context as usize;
            let mut decoding = subject.begin_decode(rows, context)?;
            let mut runs = Vec::new();
            for _ in 0..2 {
                let before = Usage::of(process)?;
                let times = subject.decode(&mut decoding, time)?;
                let cores = Usage::of(process)?.cores_since(&before);
                let mean = times.iter().sum::<f64>() / times.len() as f64;
                let milliseconds = times.iter().map(|time| time * 1e3).collect();
                runs.push((mean, Distribution::of(milliseconds), cores));
            }
            runs.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (seconds, milliseconds, cores) = runs[0];
            let bytes = subject.step_bytes(rows, context);
            report.steps.push(Steps {
                rows,
                context,
                milliseconds: seconds * 1e3,
                milliseconds_of_the_other_run: runs[1].0 * 1e3,
                between_steps_ms: milliseconds,
                tokens_per_second: rows as f64 / seconds,
                bytes,
                bytes_per_second: bytes / seconds,
                of_read_bandwidth: bytes / seconds / (bandwidth * report.ranks as f64),
                cores,
            });
            if let Some(steps) = report.steps.last() {
                self.show(report, steps)?;
            }
        }
        println!();
        Ok(())
    }

    /// What ranks exchange in the steps that were measured.
    pub(super) fn measure_exchanges<O: Measured>(
        &self,
        subject: &Subject<O>,
        bandwidth: f64,
        report: &mut Report,
    ) -> Result<(), CliError> {
        if report.ranks == 1 || report.steps.is_empty() {
            return Ok(());
        }
        println!("{}", Exchanges::HEADER);
        for steps in report.steps.clone() {
            let Some(exchanges) = subject.exchanges(steps.rows)? else {
                continue;
            };
            let bytes = subject.rank_bytes(steps.rows, steps.context);
            let exchanges = Exchanges::of(&steps, &exchanges, bytes, bandwidth);
            report.exchanges.push(exchanges.clone());
            self.show(report, &exchanges)?;
        }
        println!();
        Ok(())
    }

    pub(super) fn measure_kernels<O: Measured>(
        &self,
        subject: &Subject<O>,
        report: &mut Report,
    ) -> Result<(), CliError> {
        if !self.measures(Part::Kernels) {
            return Ok(());
        }
        for rows in self.rows.iter().map(|&rows| rows as usize) {
            let mut decoding = subject.begin_decode(rows, self.context as usize)?;
            let kernels = subject.kernels(&mut decoding)?;
            if kernels.is_empty() {
                println!("the device does not tell kernels apart\n");
                return Ok(());
            }
            report.kernels.push(Kernels { rows, kernels });
            if let Some(kernels) = report.kernels.last() {
                self.show(report, kernels)?;
            }
        }
        Ok(())
    }

    pub(super) fn measure_prefill<O: Measured>(
        &self,
        subject: &Subject<O>,
        report: &mut Report,
    ) -> Result<(), CliError> {
        if !self.measures(Part::Prefill) {
            return Ok(());
        }
        let tokens = self.prefill as usize;
        // The first finds what it needs, the second records.
        for _ in 0..2 {
            subject.prefill(tokens)?;
        }
        let times: Result<Vec<Duration>, _> =
            (0..PREFILLS).map(|_| subject.prefill(tokens)).collect();
        let times = times?.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        let prefill = Prefill {
            tokens,
            milliseconds: Distribution::of(times),
        };
        report.prefill = Some(prefill.clone());
        self.show(report, &prefill)
    }

    pub(super) fn measure_images<O: Measured>(
        &self,
        subject: &Subject<O>,
        limit: Duration,
        report: &mut Report,
    ) -> Result<(), CliError> {
        if !self.measures(Part::Images) {
            return Ok(());
        }
        println!("{}", Images::HEADER);
        let process = std::process::id();
        for &tokens in &self.images {
            for &concurrency in &self.concurrency {
                let load = ImageLoad {
                    tokens: tokens as usize,
                    concurrency: concurrency as usize,
                    prompt: self.prompt as usize,
                    guidance_scale: self.guidance_scale,
                    limit,
                };
                let before = Usage::of(process)?;
                let run = subject.images(&load)?;
                let cores = Usage::of(process)?.cores_since(&before);
                let rows = run.side_by_side * self.rows_an_image();
                let step = mean_step(subject, rows, load.prompt + load.tokens / 2)?;
                let images = Images::of(&load, &run, rows, step, cores);
                report.images.push(images.clone());
                self.show(report, &images)?;
            }
        }
        Ok(())
    }
}

/// Seconds of a decode step, on average.
fn mean_step<O: Measured>(
    subject: &Subject<O>,
    rows: usize,
    context: usize,
) -> Result<f64, CliError> {
    let mut decoding = subject.begin_decode(rows, context)?;
    let times = subject.decode(&mut decoding, COMPARED)?;
    Ok(times.iter().sum::<f64>() / times.len() as f64)
}
