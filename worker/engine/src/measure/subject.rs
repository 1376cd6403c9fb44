//! The backbone that is measured: loaded, and its steps and prefills.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Measured;
use crate::{
    Error, Result,
    checkpoint::{BackboneConfig, Weights},
    group::{Rank, StepOutput, ThreadGroup},
    model::backbone::Backbone,
    parallel::{HeadLayout, Shard, collective::Unconnected, layout::even_chunk},
    sampling::SamplingParams,
    schedule::{Admission, DrawSetup, Mode, Row, Sample, SchedulerConfig, Slot, Step, TokenSource},
};

/// Steps that are given to the device before the first of them has ended, as a worker does.
pub(super) const STEPS_AHEAD: usize = 2;
/// Steps before the first that is timed: the device finds what it needs, and records.
const WARM_UP: usize = 4;

/// The published script's settings.
pub(super) const SAMPLING: SamplingParams = SamplingParams {
    temperature: 1.0,
    top_k: 50,
    top_p: 1.0,
    min_p: 0.03,
    guidance_scale: 1.0,
};

/// The shapes of the published backbone.
pub fn published() -> BackboneConfig {
    BackboneConfig {
        text_vocab: 152_064,
        mm_vocab: 16_448,
        image_vocab: 16_384,
        hidden: 3584,
        intermediate: 18_944,
        layers: 36,
        adapter_layers: 4,
        head_layers: 4,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        sliding_window: None,
        max_positions: 32_768,
    }
}

/// A backbone whose cache holds noise.
pub struct Subject<O: Measured> {
    /// One for each rank.
    pub(super) devices: Vec<Arc<O>>,
    pub(super) group: ThreadGroup,
    pub(super) config: BackboneConfig,
    pub(super) limits: SchedulerConfig,
}

/// Sequences that decode at one position, over and over.
#[derive(Debug)]
pub struct Decoding {
    rows: usize,
    context: usize,
    steps: u32,
}

impl<O: Measured> Subject<O> {
    /// Loads a backbone with a cache of `limits`, a rank on each of `devices`.
    ///
    /// # Errors
    /// What loading says.
    pub fn load(
        devices: &[Arc<O>],
        config: &BackboneConfig,
        mut weights: Weights,
        limits: SchedulerConfig,
        keep_logits: bool,
    ) -> Result<Self> {
        let mut ranks = Vec::new();
        for (index, ops) in devices.iter().enumerate() {
            let shard = Shard::new(index, devices.len())?;
            let (unconnected, most) = (Box::new(Unconnected(devices.len())), limits.max_rows);
            let backbone =
                Backbone::load(ops.clone(), shard, unconnected, config, &mut weights, most)?;
            let mut kv = backbone.kv_cache(limits.blocks, limits.block_size)?;
            ops.fill(&mut kv)?;
            let rows = backbone.rows(limits.max_sequences, limits.block_size)?;
            ranks.push(Rank::new(backbone, kv, rows, &[], keep_logits));
        }
        weights.finish(|_| false)?;
        let group = ThreadGroup::of(0, ranks)?;
        group.reset_local()?;
        Ok(Self {
            devices: devices.to_vec(),
            group,
            config: config.clone(),
            limits,
        })
    }

    /// Bytes that the ranks must read in a step: every weight of the layers and of the image head once, every key
    /// and value of `context` positions of each row once.
    pub fn step_bytes(&self, rows: usize, context: usize) -> f64 {
        self.bytes_of(Shard::whole(), rows, context)
    }

    /// Those of the rank that has the most to read. Together ranks read more than once what several of them have.
    pub fn rank_bytes(&self, rows: usize, context: usize) -> f64 {
        let size = self.devices.len();
        let ranks = (0..size).filter_map(|rank| Shard::new(rank, size).ok());
        let bytes = ranks.map(|rank| self.bytes_of(rank, rows, context));
        bytes.fold(0.0, f64::max)
    }

    fn bytes_of(&self, shard: Shard, rows: usize, context: usize) -> f64 {
        let config = &self.config;
        let (weight, value) = self.devices[0].value_bytes();
        let (c, d) = (config.hidden, config.head_dim);
        let (heads, chunks) = (HeadLayout::new(config), shard.chunks());
        let query_heads = heads.query_heads(chunks.clone());
        let kv_heads = heads.kv_heads(&query_heads).len();
        let channels = chunks.map(|chunk| even_chunk(config.intermediate, chunk).len());
        let attention = (2 * query_heads.len() + 2 * kv_heads) * d * c;
        let layer = attention + 3 * c * channels.sum::<usize>();
        let head = shard.vocabulary(config.image_vocab).len() * c;
        let weights = config.layers * layer + head;
        let position = 2 * config.layers * kv_heads * d;
        (weights * weight + rows * context * position * value) as f64
    }

    /// Begins to decode one row of each of `rows` sequences at the end of `context` positions, and
    /// warms up.
    ///
    /// # Errors
    /// [`Error::BadInput`] for more than the limits allow.
    pub fn begin_decode(&self, rows: usize, context: usize) -> Result<Decoding> {
        self.fits("rows", rows, context)?;
        self.group.reset_local()?;
        let mut decoding = Decoding {
            rows,
            context,
            steps: 0,
        };
        for _ in 0..WARM_UP {
            self.run(self.decode_step(&mut decoding))?;
        }
        Ok(decoding)
    }

    /// Decodes for at least `least` and returns when each step ended, after the one before or the
    /// start, in seconds. Steps follow each other without a pause.
    ///
    /// # Errors
    /// What the device says, or [`Error::NotFinite`].
    pub fn decode(&self, decoding: &mut Decoding, least: Duration) -> Result<Vec<f64>> {
        let (start, mut times) = (Instant::now(), Vec::new());
        let (mut ahead, mut last) = (0, start);
        loop {
            let more = start.elapsed() < least;
            while more && ahead < STEPS_AHEAD {
                self.group.submit(&Arc::new(self.decode_step(decoding)))?;
                ahead += 1;
            }
            if ahead == 0 {
                return Ok(times);
            }
            check(&self.group.collect()?)?;
            ahead -= 1;
            let now = Instant::now();
            times.push((now - last).as_secs_f64());
            last = now;
        }
    }

    /// Runs a prompt of `tokens` tokens in as few steps as there can be, and draws its first token.
    ///
    /// # Errors
    /// As [`Subject::decode`]; [`Error::BadInput`] for more than the limits allow.
    pub fn prefill(&self, tokens: usize) -> Result<Duration> {
        self.fits("prefill", 1, tokens)?;
        self.group.reset_local()?;
        let start = Instant::now();
        let mut steps = 0;
        for first in (0..tokens).step_by(self.limits.max_rows) {
            let last = tokens.min(first + self.limits.max_rows);
            let known = |p: usize| TokenSource::Known((p * 7919 % self.config.text_vocab) as u32);
            let mut step = Step {
                rows: (first..last).map(|p| row(0, p, known(p))).collect(),
                ..Step::default()
            };
            if first == 0 {
                step.admissions = vec![self.admission(0, 1, tokens)];
            }
            if last == tokens {
                step.samples = vec![sample((last - first - 1) as u32, 0)];
            }
            self.group.submit(&Arc::new(step))?;
            steps += 1;
        }
        for _ in 0..steps {
            check(&self.group.collect()?)?;
        }
        Ok(start.elapsed())
    }

    pub(super) fn run(&self, step: Step) -> Result<StepOutput> {
        let output = self.group.run(Arc::new(step))?;
        check(&output)?;
        Ok(output)
    }

    fn fits(&self, field: &'static str, rows: usize, positions: usize) -> Result<()> {
        let most = self.limits.max_rows.min(self.limits.max_sequences);
        if rows > most {
            return Err(Error::bad_input(
                field,
                format!("must be at most {most}"),
                rows,
            ));
        }
        if positions == 0 || positions > self.limits.max_positions {
            let limit = format!("positions must be 1 to {}", self.limits.max_positions);
            return Err(Error::bad_input(field, limit, positions));
        }
        let blocks = rows * positions.div_ceil(self.limits.block_size);
        if blocks > self.limits.blocks {
            let limit = format!("the K/V memory has {} blocks", self.limits.blocks);
            let value = format!("{rows} of {positions} positions, {blocks} blocks");
            return Err(Error::bad_input(field, limit, value));
        }
        Ok(())
    }

    /// Sequence `slot` of `slots`, with blocks between those of the others, as if they had grown side
    /// by side.
    fn admission(&self, slot: usize, slots: usize, positions: usize) -> Admission {
        let blocks = positions.div_ceil(self.limits.block_size);
        Admission {
            slot: slot as Slot,
            table: (0..blocks)
                .map(|block| (block * slots + slot) as u32)
                .collect(),
            mode: Mode::Image,
            draw: Some(DrawSetup {
                params: SAMPLING,
                seed: slot as u64,
                image_index: 0,
                log_prob: false,
            }),
        }
    }

    pub(super) fn decode_step(&self, decoding: &mut Decoding) -> Step {
        let Decoding {
            rows,
            context,
            steps,
        } = *decoding;
        decoding.steps += 1;
        let mut step = Step::default();
        for slot in 0..rows {
            let token = match steps {
                0 => {
                    step.admissions.push(self.admission(slot, rows, context));
                    let code = slot * 7919 % self.config.image_vocab;
                    TokenSource::Known((self.config.text_vocab + code) as u32)
                }
                _ => TokenSource::Drawn,
            };
            step.rows.push(row(slot as Slot, context - 1, token));
            step.samples.push(sample(slot as u32, steps));
        }
        step
    }
}

pub(super) fn row(slot: Slot, position: usize, token: TokenSource) -> Row {
    Row {
        slot,
        position: position as u32,
        token,
    }
}

pub(super) fn sample(row: u32, n: u32) -> Sample {
    Sample {
        row,
        uncond_row: None,
        n,
    }
}

/// Refuses a step that drew nothing somewhere.
pub(super) fn check(output: &StepOutput) -> Result<()> {
    match output.drawn.iter().position(Option::is_none) {
        None => Ok(()),
        Some(output) => Err(Error::NotFinite { output, n: 0 }),
    }
}
