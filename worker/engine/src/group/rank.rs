//! One rank: its share of the model, its K/V cache, and what it remembers of each sequence.

use std::{collections::HashMap, sync::Arc};

use crate::{
    Error, Result,
    model::backbone::Backbone,
    ops::{RowBatch, RowDraw, TransformerOps},
    parallel::Collective,
    sampling::{Draw, Drawn},
    schedule::{Admission, Mode, Sample, Slot, Step, TokenSource},
};

/// What a step drew.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepOutput {
    /// The step.
    pub step: u64,
    /// Token id and draw of each sample, in order.
    pub drawn: Vec<(u32, Drawn)>,
    /// The raw logits of each sample's rows, conditional first, if they were asked for.
    pub logits: Vec<Vec<Vec<f32>>>,
}

#[derive(Debug)]
struct Sequence {
    admission: Admission,
    last_token: Option<u32>,
}

/// One rank of a group.
pub struct Rank<O: TransformerOps> {
    backbone: Backbone<O>,
    kv: O::Kv,
    sequences: HashMap<Slot, Sequence>,
    /// Text tokens that are never drawn.
    suppressed: Vec<u32>,
    keep_logits: bool,
}

impl<O: TransformerOps> Rank<O> {
    /// A rank with an empty cache. `suppressed` are the control tokens that text never draws.
    pub fn new(backbone: Backbone<O>, kv: O::Kv, suppressed: &[u32], keep_logits: bool) -> Self {
        let text = backbone.vocabulary(Mode::Text);
        let suppressed = suppressed
            .iter()
            .copied()
            .filter(|id| text.contains(id))
            .collect();
        Self {
            backbone,
            kv,
            sequences: HashMap::new(),
            suppressed,
            keep_logits,
        }
    }

    /// Forgets every sequence and exchanges through `collective` from here on.
    pub fn begin_epoch(&mut self, collective: Box<dyn Collective<O>>) {
        self.sequences.clear();
        self.backbone.set_collective(collective);
    }

    /// Number of ranks of the group.
    pub fn group_size(&self) -> usize {
        self.backbone.group_size()
    }

    /// Runs one step. Steps must come in the order planned.
    ///
    /// # Errors
    /// Whatever the device or the collective says; the rank is of no use then.
    pub fn run(&mut self, step: &Step) -> Result<StepOutput> {
        for admission in &step.admissions {
            let sequence = Sequence {
                admission: admission.clone(),
                last_token: None,
            };
            self.sequences.insert(admission.slot, sequence);
        }
        let rows = self.row_batch(step)?;
        self.backbone.forward(&rows, &mut self.kv, None)?;
        let mut output = StepOutput {
            step: step.id,
            ..StepOutput::default()
        };
        output.drawn.resize(
            step.samples.len(),
            (
                0,
                Drawn {
                    index: 0,
                    log_prob: 0.0,
                },
            ),
        );
        output.logits.resize(
            if self.keep_logits {
                step.samples.len()
            } else {
                0
            },
            vec![],
        );
        for mode in [Mode::Image, Mode::Text] {
            self.draw(step, &rows, mode, &mut output)?;
        }
        self.remember(step, &output);
        Ok(output)
    }

    fn sequence(&self, slot: Slot) -> Result<&Sequence> {
        let found = self.sequences.get(&slot);
        found.ok_or_else(|| Error::GroupLost(format!("a row of slot {slot}, never admitted")))
    }

    fn row_batch(&self, step: &Step) -> Result<RowBatch> {
        let mut batch = RowBatch::default();
        let mut tables: HashMap<Slot, u32> = HashMap::new();
        let text_vocab = self.backbone.config().text_vocab;
        for row in &step.rows {
            let sequence = self.sequence(row.slot)?;
            let token = match row.token {
                TokenSource::Known(token) => token,
                TokenSource::Drawn => sequence.last_token.ok_or_else(|| {
                    Error::GroupLost(format!("slot {} continues before any draw", row.slot))
                })?,
            };
            batch.tokens.push(token);
            batch.multimodal.push(token as usize >= text_vocab);
            batch.positions.push(row.position);
            let index = *tables.entry(row.slot).or_insert_with(|| {
                batch.tables.push(Arc::clone(&sequence.admission.table));
                batch.tables.len() as u32 - 1
            });
            batch.tables_index.push(index);
        }
        Ok(batch)
    }

    /// Draws the samples of `mode` into `output`.
    fn draw(
        &mut self,
        step: &Step,
        rows: &RowBatch,
        mode: Mode,
        output: &mut StepOutput,
    ) -> Result<()> {
        let mut indices = Vec::new();
        let mut draws = Vec::new();
        let mut places = Vec::new();
        for (place, sample) in step.samples.iter().enumerate() {
            let slot = step.rows[sample.row as usize].slot;
            let admission = &self.sequence(slot)?.admission;
            if admission.mode != mode {
                continue;
            }
            let setup = admission.draw.as_ref().ok_or_else(|| {
                Error::GroupLost(format!("a draw from slot {slot}, which is unconditional"))
            })?;
            let mut push = |row: u32| {
                indices.push(row as usize);
                indices.len() - 1
            };
            let draw = Draw {
                params: setup.params,
                seed: setup.seed,
                image_index: setup.image_index,
                n: sample.n,
            };
            let suppressed = match mode {
                Mode::Image => &[],
                Mode::Text => self.suppressed.as_slice(),
            };
            let row = push(sample.row);
            let uncond_row = sample.uncond_row.map(push);
            draws.push(RowDraw {
                row,
                uncond_row,
                draw,
                suppressed,
            });
            places.push(place);
        }
        if draws.is_empty() {
            return Ok(());
        }
        let logits = self.backbone.logits(rows, &indices, mode)?;
        let vocabulary = self.backbone.vocabulary(mode);
        let drawn = self
            .backbone
            .ops()
            .sample(&logits, vocabulary.len(), &draws)?;
        for (&place, drawn) in places.iter().zip(drawn) {
            output.drawn[place] = (vocabulary.start + drawn.index, drawn);
        }
        if self.keep_logits {
            let all = self
                .backbone
                .ops()
                .read(&logits, indices.len() * vocabulary.len())?;
            let row = |index: usize| all[index * vocabulary.len()..][..vocabulary.len()].to_vec();
            for (&place, draw) in places.iter().zip(&draws) {
                let rows = [Some(draw.row), draw.uncond_row].into_iter().flatten();
                output.logits[place] = rows.map(row).collect();
            }
        }
        Ok(())
    }

    fn remember(&mut self, step: &Step, output: &StepOutput) {
        for (
            Sample {
                row, uncond_row, ..
            },
            (token, _),
        ) in step.samples.iter().zip(&output.drawn)
        {
            for row in [Some(*row), *uncond_row].into_iter().flatten() {
                let slot = step.rows[row as usize].slot;
                if let Some(sequence) = self.sequences.get_mut(&slot) {
                    sequence.last_token = Some(*token);
                }
            }
        }
    }
}
