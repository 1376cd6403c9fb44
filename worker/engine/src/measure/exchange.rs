//! What the exchanges of a step take, by themselves.

use std::{panic::resume_unwind, sync::Arc, thread};

use serde::Serialize;

use super::{Measured, Subject, validation::same};
use crate::{
    Error, Result,
    ops::{Device, StepLimits, StepPlan, StepRows, TransformerOps},
    parallel::{
        Abort, Collective, Meeting, Shard, collective::Unconnected, local::DEADLINE, local_group,
    },
};

/// Exchanges of a step that is timed: an even number, as in every step.
const EXCHANGES: usize = 200;
/// Steps before the first that is timed: the device finds what it needs, and records.
const WARM_UP: usize = 2;
/// Steps of which medians are taken.
const RUNS: usize = 9;

/// The exchanges of a decode step, each as long as it takes right after another one: plain sums, whose additions are left to
/// whoever reads them where an exchange is a gather.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Exchanges {
    /// Sums of hidden states: two a layer.
    pub sums: usize,
    /// Seconds of a sum.
    pub sum_seconds: f64,
    /// Gathers of image logits.
    pub gathers: usize,
    /// Seconds of a gather.
    pub gather_seconds: f64,
}

impl Exchanges {
    /// Seconds of all of them.
    pub fn seconds(&self) -> f64 {
        self.sums as f64 * self.sum_seconds + self.gathers as f64 * self.gather_seconds
    }
}

impl<O: Measured> Subject<O> {
    /// Times the exchanges of a decode step of `rows` rows, in an epoch of their own: on all ranks at once, in steps of nothing
    /// else, the slowest rank counting. `None` for a rank alone.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if ranks do not get what the others sent; what the device says.
    pub fn exchanges(&self, rows: usize) -> Result<Option<Exchanges>> {
        let (config, ranks) = (&self.config, self.devices.len());
        if ranks == 1 {
            return Ok(None);
        }
        let logits = Shard::new(0, ranks)?.vocabulary(config.image_vocab).len();
        Ok(Some(Exchanges {
            sums: 2 * config.layers,
            sum_seconds: self.seconds(Kind::Sum, rows * config.hidden)?,
            gathers: 1,
            gather_seconds: self.seconds(Kind::Gather, rows * logits)?,
        }))
    }

    /// Seconds of an exchange of `len` values of each rank.
    fn seconds(&self, kind: Kind, len: usize) -> Result<f64> {
        let size = self.devices.len();
        // Devices may not reserve memory while one of them waits for another.
        let end = |ops| End::new(ops, size, kind, len, self.limits.block_size);
        let mut ends: Vec<End<O>> = self.devices.iter().map(end).collect::<Result<_>>()?;
        let abort = Abort::default();
        let times: Result<Vec<_>> = thread::scope(|scope| {
            let mut ranks = Vec::new();
            for (rank, (end, host)) in ends.iter_mut().zip(local_group(size)).enumerate() {
                let meeting = Meeting {
                    rank,
                    host: Box::new(host),
                    deadline: DEADLINE,
                    abort: abort.clone(),
                };
                ranks.push(scope.spawn(move || end.time(meeting)));
            }
            let times = ranks.into_iter().map(|rank| rank.join());
            times
                .map(|times| times.unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        });
        // Each leaves by itself, as ranks do: none waits for another that is yet to leave.
        thread::scope(|scope| {
            for end in ends {
                scope.spawn(move || drop(end));
            }
        });
        let times = times?;
        let slowest = |run: usize| times.iter().map(|rank| rank[run]).fold(0.0, f64::max);
        let mut slowest: Vec<f64> = (0..RUNS).map(slowest).collect();
        slowest.sort_by(f64::total_cmp);
        Ok(slowest[RUNS / 2])
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Sum,
    Gather,
}

/// One rank's end of an exchange that is timed.
struct End<O: TransformerOps> {
    ops: Arc<O>,
    values: Values<O>,
    // Dropped before the collective that its recordings use.
    rows: O::Rows,
    collective: Box<dyn Collective<O>>,
}

/// What is exchanged.
struct Values<D: Device> {
    kind: Kind,
    ranks: usize,
    /// Values of each rank.
    len: usize,
    mine: D::Buffer,
    /// Those of all ranks, in turn: nobody writes to one that is still read.
    all: [D::Buffer; 2],
    sum: D::Buffer,
}

impl<O: Measured> End<O> {
    /// An end that is not connected, of `ranks` of them.
    fn new(ops: &Arc<O>, ranks: usize, kind: Kind, len: usize, block_size: usize) -> Result<Self> {
        let all = || ops.buffer(ranks * len);
        let limits = StepLimits {
            max_rows: 1,
            slots: 1,
            max_positions: block_size,
            block_size,
            text_vocab: 1,
            window: None,
            kv_heads: 1,
        };
        Ok(Self {
            values: Values {
                kind,
                ranks,
                len,
                mine: ops.buffer(len)?,
                all: [all()?, all()?],
                sum: ops.buffer(len)?,
            },
            rows: ops.rows(&limits)?,
            collective: Box::new(Unconnected(ranks)),
            ops: ops.clone(),
        })
    }

    /// Seconds of an exchange in each run. A failure here, or a panic, frees the other ranks.
    fn time(&mut self, meeting: Meeting<O>) -> Result<Vec<f64>> {
        let abort = meeting.abort.clone();
        let _panics = FreeOthers(abort.clone());
        let times = self.times(meeting);
        times.inspect_err(|_| abort.abort())
    }

    fn times(&mut self, meeting: Meeting<O>) -> Result<Vec<f64>> {
        let rank = meeting.rank;
        self.collective = self.ops.exchange(meeting)?;
        self.validate(rank)?;
        for _ in 0..WARM_UP {
            self.run()?;
        }
        (0..RUNS).map(|_| self.run()).collect()
    }

    /// Refuses exchanges that do not bring what ranks sent.
    fn validate(&mut self, rank: usize) -> Result<()> {
        let Self { ops, values, .. } = self;
        let (ranks, len) = (values.ranks, values.len);
        let sent: Vec<Vec<f32>> = (0..ranks).map(|rank| noise(rank, len)).collect();
        ops.write(&sent[rank], &mut values.mine)?;
        let want = match values.kind {
            Kind::Sum => tree_sum(&sent),
            Kind::Gather => sent.concat(),
        };
        for turn in 0..2 {
            values.exchange(&**ops, &mut *self.collective, turn)?;
            let got = match values.kind {
                Kind::Sum => ops.read(&values.sum, len),
                Kind::Gather => ops.read(&values.all[turn], ranks * len),
            }?;
            if !same(&got, &want) {
                let reason = format!("rank {rank} got other values than ranks sent");
                return Err(Error::GroupLost(reason));
            }
        }
        Ok(())
    }

    /// Seconds of an exchange in a step of nothing else. Where steps can begin ahead, one does: what the host takes to begin the
    /// step, and how far ranks are apart then, is not the exchange's.
    fn run(&mut self) -> Result<f64> {
        let Self {
            ops,
            values,
            rows,
            collective,
        } = self;
        let replayable = collective.on_device();
        let mut step = |rows: &mut O::Rows| {
            ops.run(rows, replayable, &mut |_| {
                (0..EXCHANGES)
                    .try_for_each(|turn| values.exchange(&**ops, &mut **collective, turn % 2))
            })
        };
        let ahead = usize::from(O::IN_FLIGHT > 1);
        for _ in 0..ahead {
            ops.begin(&StepPlan::default(), rows)?;
            step(rows)?;
        }
        ops.begin(&StepPlan::default(), rows)?;
        let seconds = ops.seconds(&mut || step(rows))?;
        for _ in 0..=ahead {
            collective.wait(&mut || rows.ended())?;
            ops.drawn(rows)?;
        }
        Ok(seconds / EXCHANGES as f64)
    }
}

/// Ends the epoch if the thread that has it panics.
struct FreeOthers(Abort);

impl Drop for FreeOthers {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abort();
        }
    }
}

impl<O: TransformerOps> Drop for End<O> {
    fn drop(&mut self) {
        self.collective.abort();
        // What the device says now concerns nobody.
        let _ = self.ops.forget(&mut self.rows);
    }
}

impl<O: TransformerOps> Values<O> {
    fn exchange(&mut self, ops: &O, collective: &mut dyn Collective<O>, turn: usize) -> Result<()> {
        let Self {
            len,
            mine,
            all,
            sum,
            ..
        } = self;
        let all = &mut all[turn];
        match self.kind {
            Kind::Sum => collective.sum(ops, mine, *len, all, sum),
            Kind::Gather => collective.gather(ops, mine, *len, all),
        }
    }
}

/// Values of a rank in `-1.0..1.0`.
fn noise(rank: usize, len: usize) -> Vec<f32> {
    let value = |i: usize| {
        let noise = (rank * len + i) as u32;
        (noise.wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(value).collect()
}

/// The sum of what ranks have, as a balanced binary tree.
fn tree_sum(ranks: &[Vec<f32>]) -> Vec<f32> {
    if let [one] = ranks {
        return one.clone();
    }
    let (left, right) = ranks.split_at(ranks.len() / 2);
    let sums = tree_sum(left).into_iter().zip(tree_sum(right));
    sums.map(|(left, right)| left + right).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::{BackboneConfig, Weights},
        ops::cpu::Cpu,
        parallel::collective::Alone,
        schedule::SchedulerConfig,
    };

    fn subject(ranks: usize) -> Subject<Cpu> {
        let config = BackboneConfig {
            text_vocab: 20,
            mm_vocab: 20,
            image_vocab: 15,
            hidden: 24,
            intermediate: 30,
            layers: 3,
            adapter_layers: 1,
            head_layers: 1,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            sliding_window: None,
            max_positions: 64,
        };
        let limits = SchedulerConfig {
            max_rows: 8,
            max_sequences: 4,
            max_queue: 4,
            blocks: 32,
            block_size: 4,
            max_positions: 64,
            vocabulary: 40,
        };
        let devices: Vec<_> = (0..ranks).map(|_| Arc::new(Cpu::new())).collect();
        let weights = Weights::random(11, "backbone");
        Subject::load(&devices, &config, weights, limits, false).expect("loaded")
    }

    #[test]
    fn exchanges_of_a_step_are_timed_between_its_ranks() {
        for ranks in [2, 4] {
            let subject = subject(ranks);
            let exchanges = subject.exchanges(3).expect("right").expect("several ranks");
            assert_eq!((exchanges.sums, exchanges.gathers), (6, 1));
            let each = [exchanges.sum_seconds, exchanges.gather_seconds];
            assert!(
                each.iter()
                    .all(|seconds| seconds.is_finite() && *seconds > 0.0),
                "{each:?}"
            );
            assert!(exchanges.seconds() > each[0] + each[1]);
            // The group is as it was.
            let mut decoding = subject.begin_decode(2, 9).expect("steps");
            subject
                .decode(&mut decoding, std::time::Duration::ZERO)
                .expect("more steps");
        }
    }

    #[test]
    fn a_rank_alone_exchanges_nothing() {
        assert_eq!(subject(1).exchanges(3).expect("nothing"), None);
    }

    #[test]
    fn a_rank_reads_its_part_of_the_weights_and_the_keys_and_values_of_its_heads() {
        let [one, four] = [1, 4].map(subject);
        assert_eq!(one.step_bytes(3, 10), 39_024.0);
        assert_eq!(one.rank_bytes(3, 10), 39_024.0);
        assert_eq!(four.step_bytes(3, 10), 39_024.0);
        // Ranks 0 and 2, with two query heads and one K/V head each; the others have none.
        assert_eq!(four.rank_bytes(3, 10), 15_888.0);
    }

    #[test]
    fn values_that_no_rank_sent_are_refused() {
        for kind in [Kind::Sum, Kind::Gather] {
            let mut end = End::new(&Arc::new(Cpu::new()), 2, kind, 12, 4).expect("an end");
            end.collective = Box::new(Alone(2));
            let error = end.validate(1).expect_err("its own values twice");
            assert!(
                error.to_string().contains("rank 1 got other values"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_rank_that_is_left_alone_ends_the_epoch() {
        let subject = subject(2);
        let mut hosts = local_group(2);
        let abort = Abort::default();
        drop(hosts.pop());
        let meeting = Meeting {
            rank: 0,
            host: Box::new(hosts.pop().expect("two ranks")),
            deadline: DEADLINE,
            abort: abort.clone(),
        };
        let mut end = End::new(&subject.devices[0], 2, Kind::Sum, 12, 4).expect("an end");
        let error = end.time(meeting).expect_err("alone");
        assert!(
            matches!(error, Error::GroupLost(_)) && abort.aborted(),
            "{error}"
        );
    }
}
