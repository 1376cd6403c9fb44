//! Whether a device computes what the CPU does, and each row by itself.

use std::{ops::Range, sync::Arc};

use serde::Serialize;

use super::{
    Measured, Subject,
    subject::{check, row, sample},
};
use crate::{
    Result,
    checkpoint::{BackboneConfig, Weights},
    ops::cpu::Cpu,
    schedule::{Admission, DrawSetup, Mode, SchedulerConfig, Slot, Step, TokenSource},
};

/// Layers that are compared.
const LAYERS: usize = 3;
/// Entries of the text vocabulary, which are not what is compared.
const TEXT_VOCAB: usize = 1024;
/// Sequences side by side, and those that the CPU computes too.
const BATCH: usize = 72;
const COMPARED: usize = 4;
/// Decode steps after the prefill.
const STEPS: usize = 3;
const MAX_ROWS: usize = 256;
const BLOCK: usize = 16;
const SEED: u64 = 1;

/// What was compared, and how it came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Validation {
    /// Layers of the backbone that was compared.
    pub layers: usize,
    /// Sequences that were compared with the CPU's.
    pub sequences: usize,
    /// Root mean square of the differences of their logits, relative to that of the logits.
    pub error: f64,
    /// The most that it may be.
    pub tolerance: f64,
    /// Whether a second run gave the same bits.
    pub repeatable: bool,
    /// Whether a sequence had the same bits alone, prefilled in other steps, as among all others.
    pub invariant: bool,
    /// Whether one rank has the same bits as all of them.
    pub alike: bool,
}

impl Validation {
    /// Whether everything held.
    pub fn holds(&self) -> bool {
        self.error <= self.tolerance && self.repeatable && self.invariant && self.alike
    }
}

/// Compares a backbone of these shapes, but of few layers and with random weights, with the CPU's and
/// with itself: prompts of random tokens of many lengths, then some steps of random image tokens.
///
/// # Errors
/// What the device says.
pub fn validate<O: Measured>(devices: &[Arc<O>], shapes: &BackboneConfig) -> Result<Validation> {
    let layers = shapes.layers.min(LAYERS);
    let config = BackboneConfig {
        text_vocab: TEXT_VOCAB,
        layers,
        adapter_layers: shapes.adapter_layers.min(1),
        head_layers: shapes.head_layers.min(1),
        ..shapes.clone()
    };
    let want = {
        let cpu = load(&[Arc::new(Cpu::new())], &config, COMPARED)?;
        logits(&cpu, 0..COMPARED, MAX_ROWS)?
    };
    let device = load(devices, &config, BATCH)?;
    let batch = logits(&device, 0..BATCH, MAX_ROWS)?;
    let again = logits(&device, 0..BATCH, MAX_ROWS)?;
    let repeatable = (0..BATCH).all(|sequence| same(&batch[sequence], &again[sequence]));
    let mut invariant = true;
    for (sequence, chunk) in [(0, 1), (COMPARED, 7), (BATCH - 1, MAX_ROWS)] {
        let alone = logits(&device, sequence..sequence + 1, chunk)?;
        invariant &= same(&alone[0], &batch[sequence]);
    }
    let mut alike = true;
    if devices.len() > 1 {
        let one = logits(&load(&devices[..1], &config, BATCH)?, 0..BATCH, MAX_ROWS)?;
        alike = (0..BATCH).all(|sequence| same(&batch[sequence], &one[sequence]));
    }
    Ok(Validation {
        layers,
        sequences: COMPARED,
        error: error(&batch[..COMPARED].concat(), &want.concat()),
        tolerance: O::TOLERANCE,
        repeatable,
        invariant,
        alike,
    })
}

fn load<O: Measured>(
    devices: &[Arc<O>],
    config: &BackboneConfig,
    sequences: usize,
) -> Result<Subject<O>> {
    let longest = (0..sequences).map(prompt).max().unwrap_or(0) + STEPS;
    let limits = SchedulerConfig {
        max_rows: MAX_ROWS,
        max_sequences: sequences,
        max_queue: 0,
        blocks: sequences * longest.div_ceil(BLOCK),
        block_size: BLOCK,
        max_positions: longest,
        vocabulary: config.text_vocab + config.mm_vocab,
    };
    Subject::load(
        devices,
        config,
        Weights::random(SEED, "backbone"),
        limits,
        true,
    )
}

/// Tokens in the prompt of a sequence.
fn prompt(sequence: usize) -> usize {
    [41, 1, 290, 16, 17, 130, 5][sequence % 7] + sequence / 7
}

/// The token of a sequence at a position: text in the prompt, then images.
fn token(config: &BackboneConfig, sequence: usize, position: usize) -> TokenSource {
    let noise = (sequence as u32 * 4001 + position as u32).wrapping_mul(0x9e37_79b9) >> 8;
    let (first, count) = match position < prompt(sequence) {
        true => (0, config.text_vocab),
        false => (config.text_vocab, config.image_vocab),
    };
    TokenSource::Known((first + noise as usize % count) as u32)
}

/// The logits of each sequence's steps after its prompt, which is prefilled in steps of `chunk` rows.
fn logits<O: Measured>(
    subject: &Subject<O>,
    sequences: Range<usize>,
    chunk: usize,
) -> Result<Vec<Vec<f32>>> {
    let Subject {
        group,
        config,
        limits,
        ..
    } = subject;
    group.reset_local()?;
    let blocks = limits.max_positions.div_ceil(BLOCK);
    let admission = |sequence: usize| Admission {
        slot: (sequence - sequences.start) as Slot,
        table: (0..blocks)
            .map(|block| ((sequence - sequences.start) * blocks + block) as u32)
            .collect(),
        mode: Mode::Image,
        draw: Some(DrawSetup {
            params: super::subject::SAMPLING,
            seed: sequence as u64,
            image_index: 0,
            log_prob: false,
        }),
    };
    let row_at = |sequence: usize, position: usize| {
        let slot = (sequence - sequences.start) as Slot;
        row(slot, position, token(config, sequence, position))
    };
    let prompts = sequences.clone();
    let prompts: Vec<_> = prompts
        .flat_map(|sequence| (0..prompt(sequence)).map(move |position| (sequence, position)))
        .map(|(sequence, position)| row_at(sequence, position))
        .collect();
    let mut admissions: Vec<Admission> = sequences.clone().map(admission).collect();
    for rows in prompts.chunks(chunk) {
        let step = Step {
            admissions: std::mem::take(&mut admissions),
            rows: rows.to_vec(),
            ..Step::default()
        };
        group.run(Arc::new(step))?;
    }
    let mut all = vec![vec![]; sequences.len()];
    for n in 0..STEPS {
        let rows = sequences.clone();
        let step = Step {
            rows: rows
                .map(|sequence| row_at(sequence, prompt(sequence) + n))
                .collect(),
            samples: (0..sequences.len() as u32)
                .map(|at| sample(at, n as u32))
                .collect(),
            ..Step::default()
        };
        let output = group.run(Arc::new(step))?;
        check(&output)?;
        for (all, logits) in all.iter_mut().zip(output.logits) {
            all.extend(logits.into_iter().flatten());
        }
    }
    Ok(all)
}

/// Whether there are values, and the same bits of both.
pub(super) fn same(a: &[f32], b: &[f32]) -> bool {
    let bits = |values: &[f32]| {
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    !a.is_empty() && bits(a) == bits(b)
}

fn error(got: &[f32], want: &[f32]) -> f64 {
    let square = |sum: f64, value: f64| sum + value * value;
    let difference = got.iter().zip(want).map(|(g, w)| f64::from(g - w));
    let size = want.iter().map(|&value| f64::from(value));
    (difference.fold(0.0, square) / size.fold(0.0, square)).sqrt()
}
