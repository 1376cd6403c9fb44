//! A group whose ranks are threads of this process.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use super::rank::{Rank, StepOutput};
use crate::{
    Error, Result,
    checkpoint::{BackboneConfig, Weights},
    model::backbone::Backbone,
    ops::TransformerOps,
    parallel::{Shard, local_group},
    schedule::Step,
};

/// Sizes of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupConfig {
    /// Tensor-parallel degree: 1, 2, 4 or 8.
    pub ranks: usize,
    /// The most rows of a step.
    pub max_rows: usize,
    /// K/V blocks.
    pub blocks: usize,
    /// Positions a block.
    pub block_size: usize,
    /// Control tokens that text never draws.
    pub suppressed: Vec<u32>,
    /// Whether [`StepOutput::logits`] is filled.
    pub keep_logits: bool,
}

struct RankThread {
    steps: Option<mpsc::Sender<Arc<Step>>>,
    outputs: mpsc::Receiver<Result<StepOutput>>,
    thread: Option<JoinHandle<()>>,
}

/// The ranks of a group, each on a thread of its own. Dropping it ends and joins them.
pub struct ThreadGroup {
    ranks: Vec<RankThread>,
}

impl ThreadGroup {
    /// Loads every rank's part of `weights` (and refuses tensors that no part knows), then starts
    /// the threads.
    ///
    /// # Errors
    /// A degree that cannot work, or whatever loading says.
    pub fn start<O: TransformerOps>(
        ops: &Arc<O>,
        config: &BackboneConfig,
        mut weights: Weights,
        group: &GroupConfig,
    ) -> Result<Self> {
        let shards = (0..group.ranks.max(1)).map(|rank| Shard::new(rank, group.ranks));
        let shards = shards.collect::<Result<Vec<_>>>()?;
        let mut ranks = Vec::new();
        for (shard, collective) in shards.into_iter().zip(local_group(group.ranks)) {
            let backbone = Backbone::load(
                ops.clone(),
                shard,
                Box::new(collective),
                config,
                &mut weights,
                group.max_rows,
            )?;
            let kv = backbone.kv_cache(group.blocks, group.block_size)?;
            ranks.push(Rank::new(
                backbone,
                kv,
                &group.suppressed,
                group.keep_logits,
            ));
        }
        weights.finish(|_| false)?;
        let ranks = ranks
            .into_iter()
            .enumerate()
            .map(|(n, rank)| spawn(n, rank));
        Ok(Self {
            ranks: ranks.collect::<Result<_>>()?,
        })
    }

    /// Runs one step on all ranks.
    ///
    /// # Errors
    /// What a rank fails with, rather than that the others waited for it; [`Error::GroupLost`] if
    /// ranks end or draw different tokens. The group is of no use then.
    pub fn run(&mut self, step: Arc<Step>) -> Result<StepOutput> {
        for (index, rank) in self.ranks.iter().enumerate() {
            let sent = rank.steps.as_ref().map(|steps| steps.send(step.clone()));
            sent.and_then(|sent| sent.ok())
                .ok_or_else(|| ended(index))?;
        }
        agree(self.ranks.iter().map(|rank| rank.outputs.recv().ok()))
    }
}

/// The output of all ranks; `None` of a rank that has ended.
fn agree(results: impl Iterator<Item = Option<Result<StepOutput>>>) -> Result<StepOutput> {
    let (mut outputs, mut cause, mut waited) = (Vec::new(), None, None);
    for (index, result) in results.enumerate() {
        match result {
            Some(Ok(output)) => outputs.push(output),
            // The others fail at an exchange with the rank that failed first.
            Some(Err(error @ Error::GroupLost(_))) => drop(waited.get_or_insert(error)),
            Some(Err(error)) => drop(cause.get_or_insert(error)),
            None => drop(cause.get_or_insert_with(|| ended(index))),
        }
    }
    if let Some(error) = cause.or(waited) {
        return Err(error);
    }
    let leader = outputs.swap_remove(0);
    if outputs.iter().any(|other| other.drawn != leader.drawn) {
        return Err(Error::GroupLost("ranks drew different tokens".into()));
    }
    Ok(leader)
}

fn ended(rank: usize) -> Error {
    Error::GroupLost(format!("rank {rank} has ended"))
}

fn spawn<O: TransformerOps>(index: usize, mut rank: Rank<O>) -> Result<RankThread> {
    let (steps, inbox) = mpsc::channel::<Arc<Step>>();
    let (outbox, outputs) = mpsc::channel();
    let work = move || {
        for step in inbox {
            let output = rank.run(&step);
            let failed = output.is_err();
            if outbox.send(output).is_err() || failed {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name(format!("rank-{index}"))
        .spawn(work)
        .map_err(|error| Error::GroupLost(format!("rank {index} cannot start: {error}")))?;
    Ok(RankThread {
        steps: Some(steps),
        outputs,
        thread: Some(thread),
    })
}

impl Drop for ThreadGroup {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            rank.steps = None;
        }
        for rank in &mut self.ranks {
            if let Some(thread) = rank.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_told_rather_than_that_others_waited() {
        let waited = || Some(Err(Error::GroupLost("rank 0 waited in vain".into())));
        let full = || {
            Some(Err(Error::Capacity {
                what: "memory",
                limit: "1".into(),
                needed: "2".into(),
            }))
        };
        let told = |results: Vec<Option<Result<StepOutput>>>| {
            agree(results.into_iter()).expect_err("failed").to_string()
        };
        assert!(told(vec![waited(), full(), waited()]).contains("memory is full"));
        assert!(told(vec![waited(), None]).contains("rank 1 has ended"));
        assert!(told(vec![Some(Ok(StepOutput::default())), waited()]).contains("in vain"));
    }
}
