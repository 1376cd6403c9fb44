//! One rank: its share of the model, its K/V cache, and how its sequences are drawn from.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    Error, Result,
    model::backbone::Backbone,
    ops::{RowDraw, StepPlan, StepRows, TransformerOps},
    parallel::{Collective, collective::Unconnected},
    sampling::{Draw, Drawn},
    schedule::{Admission, Mode, Sample, Slot, Step},
};

/// What a step drew.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepOutput {
    /// The step.
    pub step: u64,
    /// Token id and draw of each sample, in order; `None` where the scores were not finite.
    pub drawn: Vec<Option<(u32, Drawn)>>,
    /// The raw logits of each sample's rows, conditional first, if they were asked for.
    pub logits: Vec<Vec<Vec<f32>>>,
}

/// A step that runs, or has run.
struct Launched {
    step: u64,
    /// Of each sample.
    modes: Vec<Mode>,
    logits: Vec<Vec<Vec<f32>>>,
}

/// One rank of a group.
pub struct Rank<O: TransformerOps> {
    backbone: Backbone<O>,
    ops: Arc<O>,
    kv: O::Kv,
    rows: O::Rows,
    sequences: HashMap<Slot, Admission>,
    launched: VecDeque<Launched>,
    /// Text tokens that are never drawn.
    suppressed: Vec<u32>,
    keep_logits: bool,
}

impl<O: TransformerOps> Rank<O> {
    /// A rank with an empty cache, and room for the rows of its steps. `suppressed` are the control
    /// tokens that text never draws.
    pub fn new(
        backbone: Backbone<O>,
        kv: O::Kv,
        rows: O::Rows,
        suppressed: &[u32],
        keep_logits: bool,
    ) -> Self {
        let text = backbone.vocabulary(Mode::Text);
        let suppressed = suppressed
            .iter()
            .copied()
            .filter(|id| text.contains(id))
            .collect();
        Self {
            ops: backbone.shared_ops(),
            backbone,
            kv,
            rows,
            sequences: HashMap::new(),
            launched: VecDeque::new(),
            suppressed,
            keep_logits,
        }
    }

    /// Leaves the epoch: neither other ranks nor the device wait for this one any more, and every
    /// sequence and step is forgotten.
    ///
    /// # Errors
    /// What the device says.
    pub fn leave(&mut self) -> Result<()> {
        self.sequences.clear();
        self.launched.clear();
        self.backbone.abort();
        let forgotten = self.ops.forget(&mut self.rows);
        let unconnected = Unconnected(self.group_size());
        self.backbone.set_collective(Box::new(unconnected));
        forgotten
    }

    /// Exchanges through `collective` from here on.
    pub fn join(&mut self, collective: Box<dyn Collective<O>>) {
        self.backbone.set_collective(collective);
    }

    /// The device that it runs on.
    pub fn ops(&self) -> &O {
        &self.ops
    }

    /// Number of ranks of the group.
    pub fn group_size(&self) -> usize {
        self.backbone.group_size()
    }

    /// Steps that were launched and not collected.
    pub fn in_flight(&self) -> usize {
        self.launched.len()
    }

    /// Whether the oldest of them has ended.
    ///
    /// # Errors
    /// What the device says.
    pub fn ended(&self) -> Result<bool> {
        self.rows.ended()
    }

    /// Begins a step. Steps must come in the order planned, and at most [`TransformerOps::IN_FLIGHT`]
    /// of them before the first is collected.
    ///
    /// # Errors
    /// Whatever the device or the collective says; the rank is of no use then.
    pub fn launch(&mut self, step: &Step) -> Result<()> {
        let (plan, modes) = self.plan(step)?;
        self.ops.begin(&plan, &mut self.rows)?;
        let (backbone, kv, suppressed) = (&mut self.backbone, &mut self.kv, &self.suppressed);
        let replayable = backbone.replayable();
        let mut work = |rows: &mut O::Rows| {
            backbone.forward(rows, kv, None)?;
            for mode in [Mode::Image, Mode::Text] {
                if !plan.draws.of(mode).is_empty() {
                    let suppressed = match mode {
                        Mode::Image => &[],
                        Mode::Text => suppressed.as_slice(),
                    };
                    backbone.sample(rows, mode, suppressed)?;
                }
            }
            Ok(())
        };
        self.ops.run(&mut self.rows, replayable, &mut work)?;
        let logits = match self.keep_logits {
            true => self.read_logits(&plan, modes.len())?,
            false => vec![],
        };
        self.launched.push_back(Launched {
            step: step.id,
            modes,
            logits,
        });
        Ok(())
    }

    /// Waits for the oldest step that was launched and not collected.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if there is none, or whatever the device or the collective says.
    pub fn collect(&mut self) -> Result<StepOutput> {
        let launched = self.launched.pop_front();
        let launched = launched.ok_or_else(|| Error::GroupLost("no step is in flight".into()))?;
        self.backbone.wait(&self.rows)?;
        let drawn = self.ops.drawn(&mut self.rows)?;
        let id = |(drawn, mode): (Option<Drawn>, Mode)| {
            drawn.map(|drawn| (self.backbone.vocabulary(mode).start + drawn.index, drawn))
        };
        Ok(StepOutput {
            step: launched.step,
            drawn: drawn.into_iter().zip(launched.modes).map(id).collect(),
            logits: launched.logits,
        })
    }

    /// The step as the device needs it, and the mode of each of its samples.
    fn plan(&mut self, step: &Step) -> Result<(StepPlan, Vec<Mode>)> {
        let mut plan = StepPlan::default();
        for admission in &step.admissions {
            let table = admission.table.clone();
            plan.admitted.push((admission.slot, table));
            self.sequences.insert(admission.slot, admission.clone());
        }
        for row in &step.rows {
            plan.slots.push(row.slot);
            plan.tokens.push(row.token);
            plan.positions.push(row.position);
        }
        let mut modes = Vec::with_capacity(step.samples.len());
        for (place, sample) in step.samples.iter().enumerate() {
            modes.push(self.plan_draw(step, place, sample, &mut plan)?);
        }
        Ok((plan, modes))
    }

    fn plan_draw(
        &self,
        step: &Step,
        place: usize,
        sample: &Sample,
        plan: &mut StepPlan,
    ) -> Result<Mode> {
        let slot_of = |row: u32| {
            let row = step.rows.get(row as usize);
            let none = || Error::GroupLost("a draw from a row that the step has not".into());
            row.map(|row| row.slot).ok_or_else(none)
        };
        let slot = slot_of(sample.row)?;
        let admission = self
            .sequences
            .get(&slot)
            .ok_or_else(|| Error::GroupLost(format!("a row of slot {slot}, never admitted")))?;
        let setup = admission.draw.as_ref().ok_or_else(|| {
            Error::GroupLost(format!("a draw from slot {slot}, which is unconditional"))
        })?;
        let picked = plan.picked.of_mut(admission.mode);
        let mut pick = |row: u32| {
            picked.push(row);
            picked.len() - 1
        };
        let row = pick(sample.row);
        let uncond_row = sample.uncond_row.map(pick);
        let draw = RowDraw {
            row,
            uncond_row,
            slots: (slot, sample.uncond_row.map(slot_of).transpose()?),
            place,
            draw: Draw {
                params: setup.params,
                seed: setup.seed,
                image_index: setup.image_index,
                n: sample.n,
                log_prob: setup.log_prob,
            },
        };
        plan.draws.of_mut(admission.mode).push(draw);
        Ok(admission.mode)
    }

    /// The logits of the step that was launched last, by sample.
    fn read_logits(&self, plan: &StepPlan, samples: usize) -> Result<Vec<Vec<Vec<f32>>>> {
        let mut logits = vec![vec![]; samples];
        for mode in [Mode::Image, Mode::Text] {
            let all = self
                .backbone
                .read_logits(mode, plan.picked.of(mode).len())?;
            let width = self.backbone.vocabulary(mode).len();
            let row = |index: usize| all[index * width..][..width].to_vec();
            for draw in plan.draws.of(mode) {
                let rows = [Some(draw.row), draw.uncond_row].into_iter().flatten();
                logits[draw.place] = rows.map(row).collect();
            }
        }
        Ok(logits)
    }
}

impl<O: TransformerOps> Drop for Rank<O> {
    fn drop(&mut self) {
        // What the device says now concerns nobody.
        let _ = self.leave();
    }
}
