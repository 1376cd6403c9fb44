//! A step on its way from the leader to its followers.

use std::{collections::HashMap, sync::Arc};

use xomni_engine::{
    sampling::SamplingParams,
    schedule::{Admission, DrawSetup, Mode, Row, Sample, Slot, Step, TokenSource},
};
use xomni_proto::worker as proto;

/// What a plan may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanLimits {
    /// The most rows of a step.
    pub max_rows: usize,
    /// Slots.
    pub max_sequences: usize,
    /// K/V blocks.
    pub blocks: usize,
    /// Positions a block.
    pub block_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Token ids.
    pub vocabulary: usize,
}

/// A plan that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("plan: {0}")]
pub struct PlanError(String);

fn wrong<T>(reason: impl Into<String>) -> Result<T, PlanError> {
    Err(PlanError(reason.into()))
}

/// The message of a step.
pub fn write(step: &Step) -> proto::Plan {
    let mode = |mode| match mode {
        Mode::Image => proto::Mode::Image,
        Mode::Text => proto::Mode::Text,
    };
    let draw = |draw: &DrawSetup| proto::PlanDraw {
        sampling: Some(proto::Sampling {
            temperature: draw.params.temperature,
            top_k: u32::try_from(draw.params.top_k).unwrap_or(u32::MAX),
            top_p: draw.params.top_p,
            min_p: draw.params.min_p,
            guidance_scale: draw.params.guidance_scale,
        }),
        seed: draw.seed,
        image_index: draw.image_index,
    };
    let admission = |admission: &Admission| proto::PlanAdmission {
        slot: admission.slot,
        table: admission.table.to_vec(),
        mode: mode(admission.mode).into(),
        draw: admission.draw.as_ref().map(draw),
    };
    let sample = |sample: &Sample| proto::PlanSample {
        row: sample.row,
        uncond_row: sample.uncond_row.map_or(0, |row| row + 1),
        n: sample.n,
    };
    let token = |row: &Row| match row.token {
        TokenSource::Known(token) => token + 1,
        TokenSource::Drawn => 0,
    };
    proto::Plan {
        step: step.id,
        admissions: step.admissions.iter().map(admission).collect(),
        slots: step.rows.iter().map(|row| row.slot).collect(),
        positions: step.rows.iter().map(|row| row.position).collect(),
        tokens: step.rows.iter().map(token).collect(),
        samples: step.samples.iter().map(sample).collect(),
    }
}

/// What the plans so far say of a slot.
#[derive(Debug)]
struct Sequence {
    positions: usize,
    draws: bool,
    drawn: bool,
}

/// Reads the plans of one epoch, in order. A step that it returns can be run: every index in it is
/// in range, every slot was admitted, every token is known or drawn.
#[derive(Debug)]
pub struct PlanReader {
    limits: PlanLimits,
    sequences: HashMap<Slot, Sequence>,
}

impl PlanReader {
    /// A reader that has seen no plan.
    pub fn new(limits: PlanLimits) -> Self {
        Self {
            limits,
            sequences: HashMap::new(),
        }
    }

    /// The step of a message.
    ///
    /// # Errors
    /// What is wrong with it; the epoch is over then.
    pub fn read(&mut self, plan: &proto::Plan) -> Result<Step, PlanError> {
        let admissions = plan.admissions.iter().map(|a| self.admission(a));
        let admissions = admissions.collect::<Result<Vec<_>, _>>()?;
        let rows = self.rows(plan)?;
        let samples = plan.samples.iter().map(|sample| self.sample(sample, &rows));
        let samples = samples.collect::<Result<Vec<_>, _>>()?;
        for sample in &samples {
            for row in [Some(sample.row), sample.uncond_row].into_iter().flatten() {
                if let Some(row) = rows.get(row as usize)
                    && let Some(sequence) = self.sequences.get_mut(&row.slot)
                {
                    sequence.drawn = true;
                }
            }
        }
        Ok(Step {
            id: plan.step,
            admissions,
            rows,
            samples,
        })
    }

    fn admission(&mut self, admission: &proto::PlanAdmission) -> Result<Admission, PlanError> {
        let slot = admission.slot;
        if slot as usize >= self.limits.max_sequences {
            return wrong(format!("slot {slot} of {}", self.limits.max_sequences));
        }
        let blocks = self.limits.blocks;
        if admission.table.len() > blocks {
            return wrong(format!("a table of {} blocks", admission.table.len()));
        }
        if let Some(block) = admission.table.iter().find(|&&b| b as usize >= blocks) {
            return wrong(format!("block {block} of {blocks}"));
        }
        let mode = match admission.mode() {
            proto::Mode::Image => Mode::Image,
            proto::Mode::Text => Mode::Text,
            proto::Mode::Unspecified => return wrong("an unknown mode"),
        };
        let sequence = Sequence {
            positions: admission.table.len() * self.limits.block_size,
            draws: admission.draw.is_some(),
            drawn: false,
        };
        self.sequences.insert(slot, sequence);
        Ok(Admission {
            slot,
            table: Arc::from(admission.table.as_slice()),
            mode,
            draw: admission.draw.as_ref().map(draw).transpose()?,
        })
    }

    fn rows(&self, plan: &proto::Plan) -> Result<Vec<Row>, PlanError> {
        let count = plan.slots.len();
        if plan.positions.len() != count || plan.tokens.len() != count {
            return wrong("slots, positions and tokens differ in number");
        }
        if !(1..=self.limits.max_rows).contains(&count) {
            return wrong(format!("{count} rows of {}", self.limits.max_rows));
        }
        let rows = plan.slots.iter().zip(&plan.positions).zip(&plan.tokens);
        rows.map(|((&slot, &position), &token)| self.row(slot, position, token))
            .collect()
    }

    fn row(&self, slot: Slot, position: u32, token: u32) -> Result<Row, PlanError> {
        let Some(sequence) = self.sequences.get(&slot) else {
            return wrong(format!("slot {slot} was not admitted"));
        };
        let positions = sequence.positions.min(self.limits.max_positions);
        if position as usize >= positions {
            return wrong(format!("position {position} of {positions}"));
        }
        let token = match token.checked_sub(1) {
            Some(id) if id as usize >= self.limits.vocabulary => {
                return wrong(format!("token {id} of {}", self.limits.vocabulary));
            }
            Some(id) => TokenSource::Known(id),
            None if !sequence.drawn => {
                return wrong(format!("slot {slot} continues before any draw"));
            }
            None => TokenSource::Drawn,
        };
        Ok(Row {
            slot,
            position,
            token,
        })
    }

    fn sample(&self, sample: &proto::PlanSample, rows: &[Row]) -> Result<Sample, PlanError> {
        let uncond_row = sample.uncond_row.checked_sub(1);
        for row in [Some(sample.row), uncond_row].into_iter().flatten() {
            if row as usize >= rows.len() {
                return wrong(format!("row {row} of {}", rows.len()));
            }
        }
        let sequence = rows
            .get(sample.row as usize)
            .and_then(|row| self.sequences.get(&row.slot));
        if !sequence.is_some_and(|sequence| sequence.draws) {
            return wrong(format!(
                "row {} draws from an unconditional slot",
                sample.row
            ));
        }
        Ok(Sample {
            row: sample.row,
            uncond_row,
            n: sample.n,
        })
    }
}

fn draw(draw: &proto::PlanDraw) -> Result<DrawSetup, PlanError> {
    let Some(sampling) = &draw.sampling else {
        return wrong("a draw without settings");
    };
    let params = SamplingParams {
        temperature: sampling.temperature,
        top_k: sampling.top_k as usize,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        guidance_scale: sampling.guidance_scale,
    };
    params
        .validate()
        .map_err(|error| PlanError(error.to_string()))?;
    Ok(DrawSetup {
        params,
        seed: draw.seed,
        image_index: draw.image_index,
    })
}

#[cfg(test)]
mod tests;
