//! What the measurement found.

use std::fmt;

use serde::Serialize;
use xomni_engine::measure::{self, ImageLoad, ImageRun, KernelTime, Validation};

use crate::bench::distribution::Distribution;

const GIB: f64 = (1 << 30) as f64;

/// The figures, as far as they were asked for.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The device's name; that of the first rank.
    pub device: String,
    /// Ranks, each on a device of its own.
    pub ranks: usize,
    /// Whose shapes.
    pub shapes: String,
    /// Layers.
    pub layers: usize,
    /// Whether it is right.
    pub validation: Option<Validation>,
    /// The loaded backbone.
    pub loaded: Option<Loaded>,
    /// Decode steps.
    pub steps: Vec<Steps>,
    /// Their exchanges, if there are several ranks.
    pub exchanges: Vec<Exchanges>,
    /// Their kernels.
    pub kernels: Vec<Kernels>,
    /// A prompt.
    pub prefill: Option<Prefill>,
    /// Whole images.
    pub images: Vec<Images>,
}

impl Report {
    /// Of a group, before anything is measured.
    pub fn new(device: String, ranks: usize, shapes: String, layers: usize) -> Self {
        Self {
            device,
            ranks,
            shapes,
            layers,
            validation: None,
            loaded: None,
            steps: vec![],
            exchanges: vec![],
            kernels: vec![],
            prefill: None,
            images: vec![],
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            device,
            ranks,
            shapes,
            layers,
            ..
        } = self;
        let ranks = if *ranks == 1 {
            String::new()
        } else {
            format!("{ranks} ranks, each on ")
        };
        writeln!(f, "{ranks}{device}: {shapes}, {layers} layers")
    }
}

/// Shows a validation.
pub struct Validated<'a>(pub &'a Validation);

impl fmt::Display for Validated<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Validation {
            layers,
            sequences,
            error,
            tolerance,
            repeatable,
            invariant,
            alike,
        } = self.0;
        let same = |same: &bool| if *same { "the same bits" } else { "OTHER BITS" };
        writeln!(
            f,
            "logits of {layers} layers, {sequences} sequences: {error:.1e} from the CPU's (rms, relative; at most {tolerance:.0e})"
        )?;
        writeln!(f, "a second run: {}", same(repeatable))?;
        writeln!(f, "a row alone as in a batch: {}", same(invariant))?;
        writeln!(f, "one rank as all: {}", same(alike))
    }
}

/// The backbone once it is loaded.
#[derive(Debug, Clone, Serialize)]
pub struct Loaded {
    /// Bytes a second of a streaming read on the first device, in this run.
    pub read_bandwidth: f64,
    /// Seconds that loading took.
    pub seconds: f64,
    /// Bytes in use and in all of the first device's memory.
    pub memory: Option<(usize, usize)>,
    /// Positions that the K/V cache has room for.
    pub kv_positions: usize,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "streaming read: {:.3} TB/s", self.read_bandwidth / 1e12)?;
        writeln!(
            f,
            "loaded in {:.1} s with room for keys and values of {} positions",
            self.seconds, self.kv_positions
        )?;
        match self.memory {
            Some((used, total)) => writeln!(
                f,
                "memory: {:.1} of {:.1} GiB, {:.0} %",
                used as f64 / GIB,
                total as f64 / GIB,
                100.0 * used as f64 / total as f64
            ),
            None => Ok(()),
        }
    }
}

/// Decode steps of some rows.
#[derive(Debug, Clone, Serialize)]
pub struct Steps {
    /// Rows.
    pub rows: usize,
    /// Positions that each reads.
    pub context: usize,
    /// Milliseconds a step, on average in the quicker of two runs.
    pub milliseconds: f64,
    /// The same of the other run.
    pub milliseconds_of_the_other_run: f64,
    /// From the end of a step to that of the next as the host sees them, in the quicker run.
    pub between_steps_ms: Distribution,
    /// Tokens a second of all rows.
    pub tokens_per_second: f64,
    /// Bytes that the ranks must read in a step.
    pub bytes: f64,
    /// Those a second.
    pub bytes_per_second: f64,
    /// Their share of the streaming read on all devices.
    pub of_read_bandwidth: f64,
    /// Cores that the process used.
    pub cores: f64,
}

impl Steps {
    /// Over the lines of all row counts.
    pub const HEADER: &'static str = "   rows   ms a step       again         p90    tokens/s          GB        TB/s   of a read       cores";
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>7}{:>12.3}{:>12.3}{:>12.3}{:>12.0}{:>12.2}{:>12.3}{:>10.1} %{:>12.2}",
            self.rows,
            self.milliseconds,
            self.milliseconds_of_the_other_run,
            self.between_steps_ms.p90,
            self.tokens_per_second,
            self.bytes / 1e9,
            self.bytes_per_second / 1e12,
            100.0 * self.of_read_bandwidth,
            self.cores
        )
    }
}

/// The exchanges of decode steps of some rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Exchanges {
    /// Rows.
    pub rows: usize,
    /// Sums of hidden states in a step.
    pub sums: usize,
    /// Microseconds of each, by itself.
    pub sum_us: f64,
    /// Gathers of logits in a step.
    pub gathers: usize,
    /// Microseconds of each, by itself.
    pub gather_us: f64,
    /// Milliseconds of all of them.
    pub milliseconds: f64,
    /// Their share of the step.
    pub of_step: f64,
    /// Bytes that the rank with the most of them must read in a step.
    pub rank_bytes: f64,
    /// Milliseconds that a streaming read of those bytes and the exchanges take.
    pub ideal_ms: f64,
    /// Those as a share of the step.
    pub ideal_of_step: f64,
}

impl Exchanges {
    /// Over the lines of all row counts.
    pub const HEADER: &'static str = "   rows        sums     µs each     gathers     µs each     all, ms   of a step   ideal, ms     reached";

    /// Those of `steps`, of which a rank reads `rank_bytes`, at most `bandwidth` a second.
    pub fn of(
        steps: &Steps,
        exchanges: &measure::Exchanges,
        rank_bytes: f64,
        bandwidth: f64,
    ) -> Self {
        let milliseconds = exchanges.seconds() * 1e3;
        let ideal_ms = rank_bytes / bandwidth * 1e3 + milliseconds;
        Self {
            rows: steps.rows,
            sums: exchanges.sums,
            sum_us: exchanges.sum_seconds * 1e6,
            gathers: exchanges.gathers,
            gather_us: exchanges.gather_seconds * 1e6,
            milliseconds,
            of_step: milliseconds / steps.milliseconds,
            rank_bytes,
            ideal_ms,
            ideal_of_step: ideal_ms / steps.milliseconds,
        }
    }
}

impl fmt::Display for Exchanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>7}{:>12}{:>12.2}{:>12}{:>12.2}{:>12.3}{:>10.1} %{:>12.3}{:>10.1} %",
            self.rows,
            self.sums,
            self.sum_us,
            self.gathers,
            self.gather_us,
            self.milliseconds,
            100.0 * self.of_step,
            self.ideal_ms,
            100.0 * self.ideal_of_step
        )
    }
}

/// The kernels of a decode step.
#[derive(Debug, Clone, Serialize)]
pub struct Kernels {
    /// Rows of the step.
    pub rows: usize,
    /// The longest first.
    pub kernels: Vec<KernelTime>,
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = ["launches", "ms", "µs each"].map(|name| format!("{name:>10}"));
        let title = format!("{} rows, each kernel alone", self.rows);
        writeln!(f, "{title:<32}{}", columns.concat())?;
        let (mut launches, mut sum) = (0, 0.0);
        for kernel in &self.kernels {
            launches += kernel.launches;
            sum += kernel.milliseconds;
            let each = kernel.milliseconds * 1e3 / kernel.launches as f64;
            let (name, ms) = (&kernel.name, kernel.milliseconds);
            writeln!(f, "{name:<32}{:>10}{ms:>10.3}{each:>10.1}", kernel.launches)?;
        }
        writeln!(f, "{:<32}{launches:>10}{sum:>10.3}", "all")
    }
}

/// A prompt.
#[derive(Debug, Clone, Serialize)]
pub struct Prefill {
    /// Its tokens.
    pub tokens: usize,
    /// From the request to its first token.
    pub milliseconds: Distribution,
}

impl fmt::Display for Prefill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (median, most) = (self.milliseconds.p50, self.milliseconds.max);
        writeln!(
            f,
            "prefill of {} tokens: {median:.1} ms to the first token, at most {most:.1}",
            self.tokens
        )
    }
}

/// Whole images.
#[derive(Debug, Clone, Serialize)]
pub struct Images {
    /// Tokens of each.
    pub tokens: usize,
    /// Images that were asked for at once.
    pub concurrency: usize,
    /// Rows of a decode step of all that were drawn side by side.
    pub rows: usize,
    /// Whether all were drawn to their ends; if not, `images_per_second` is what the first tokens let
    /// expect.
    pub complete: bool,
    /// Those that were.
    pub finished: usize,
    /// Seconds of the run.
    pub seconds: f64,
    /// Until every image had its first token.
    pub first_token_seconds: Option<f64>,
    /// Tokens a second in the run, prefill included.
    pub tokens_per_second: f64,
    /// Images a second of all that were asked for.
    pub images_per_second: Option<f64>,
    /// Milliseconds of each of an image's tokens, on average over all of it.
    pub milliseconds_a_token: Option<f64>,
    /// Milliseconds of a decode step of those rows by itself, over as many positions as the images have half drawn.
    pub milliseconds_a_step: f64,
    /// Tokens a second of the images, prefill included, as a share of what such steps draw.
    pub of_steps: Option<f64>,
    /// Cores that the process used.
    pub cores: f64,
}

impl Images {
    /// Over the lines of all sizes and concurrencies.
    pub const HEADER: &'static str = " tokens     at once        rows    finished     seconds     first s    tokens/s    images/s    ms/token   ms a step    of steps       cores";

    /// Of a run in steps of `rows` rows, of which one by itself takes `step` seconds.
    pub fn of(load: &ImageLoad, run: &ImageRun, rows: usize, step: f64, cores: f64) -> Self {
        let all = load.concurrency as f64;
        let side_by_side = run.side_by_side as f64;
        let of_steps = |seconds: f64| all * load.tokens as f64 / seconds * step / side_by_side;
        Self {
            tokens: load.tokens,
            concurrency: load.concurrency,
            rows,
            complete: run.complete(load),
            finished: run.finished,
            seconds: run.seconds,
            first_token_seconds: run.first_token_seconds,
            tokens_per_second: run.drawn as f64 / run.seconds.max(1e-9),
            images_per_second: run.all_seconds.map(|seconds| all / seconds),
            milliseconds_a_token: run
                .all_seconds
                .map(|seconds| seconds * 1e3 / load.tokens as f64),
            milliseconds_a_step: step * 1e3,
            of_steps: run.all_seconds.map(of_steps),
            cores,
        }
    }
}

impl fmt::Display for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = if self.complete { "" } else { "~" };
        let number = |value: Option<f64>, mark: &str| match value {
            Some(value) => format!("{mark}{value:.3}"),
            None => "-".into(),
        };
        write!(
            f,
            "{:>7}{:>12}{:>12}{:>12}{:>12.2}{:>12}{:>12.0}{:>12}{:>12}{:>12.3}{:>12}{:>12.2}",
            self.tokens,
            self.concurrency,
            self.rows,
            self.finished,
            self.seconds,
            number(self.first_token_seconds, ""),
            self.tokens_per_second,
            number(self.images_per_second, expected),
            number(self.milliseconds_a_token, expected),
            self.milliseconds_a_step,
            number(self.of_steps, expected),
            self.cores
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ideal_step_reads_and_exchanges() {
        let steps = Steps {
            rows: 8,
            context: 100,
            milliseconds: 4.0,
            milliseconds_of_the_other_run: 4.0,
            between_steps_ms: Distribution::default(),
            tokens_per_second: 2000.0,
            bytes: 8e9,
            bytes_per_second: 2e12,
            of_read_bandwidth: 0.5,
            cores: 0.0,
        };
        let exchanges = measure::Exchanges {
            sums: 72,
            sum_seconds: 5e-6,
            gathers: 1,
            gather_seconds: 4e-5,
        };
        let exchanges = Exchanges::of(&steps, &exchanges, 5e9, 2e12);
        assert!((exchanges.milliseconds - 0.4).abs() < 1e-9);
        assert!((exchanges.of_step - 0.1).abs() < 1e-9);
        assert!((exchanges.ideal_ms - 2.9).abs() < 1e-9);
        assert!((exchanges.ideal_of_step - 0.725).abs() < 1e-9);
        let width = |line: &str| line.chars().count();
        assert_eq!(width(&exchanges.to_string()), width(Exchanges::HEADER));
    }
}
