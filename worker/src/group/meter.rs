//! What a process of a group counts, whether it leads or follows.

use std::{fmt, time::Instant};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::Counter,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tokio::sync::watch;
use xomni_cluster::record::WorkerState;
use xomni_engine::{group::StepOutput, schedule::Step};

use crate::convert::Standing;

/// Counters of the ranks of a process. Clones count together.
#[derive(Debug, Clone)]
pub struct GroupMeter {
    steps: Counter,
    rows: Counter,
    tokens: Counter,
    step_seconds: Histogram,
    epochs_lost: Counter,
}

impl Default for GroupMeter {
    fn default() -> Self {
        Self {
            steps: Counter::default(),
            rows: Counter::default(),
            tokens: Counter::default(),
            step_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            epochs_lost: Counter::default(),
        }
    }
}

impl GroupMeter {
    /// Makes its counters part of what an operator sees, as `xomni_backbone_…`, and with them how
    /// the process stands; where it `leads`, also what the group holds, and `xomni_kv_…`.
    pub fn register(
        &self,
        registry: &mut Registry,
        standing: watch::Receiver<Standing>,
        leads: bool,
    ) {
        registry.register_collector(Box::new(StandingMetrics { standing, leads }));
        let backbone = registry.sub_registry_with_prefix("backbone");
        let counters = [
            (
                "steps",
                "Steps run by the ranks of this process",
                &self.steps,
            ),
            ("rows", "Rows run: prefill, replay and decode", &self.rows),
            ("tokens", "Tokens drawn", &self.tokens),
            (
                "epochs_lost",
                "Epochs that ended otherwise than by a drain",
                &self.epochs_lost,
            ),
        ];
        for (name, help, counter) in counters {
            backbone.register(name, help, counter.clone());
        }
        let help = "Time that the ranks of this process took for a step";
        backbone.register("step_seconds", help, self.step_seconds.clone());
    }

    /// An epoch was lost.
    pub(super) fn epoch_lost(&self) {
        self.epochs_lost.inc();
    }
}

/// A step that the ranks were given.
#[derive(Debug)]
pub(super) struct Given {
    rows: usize,
    at: Instant,
}

impl Given {
    /// Given just now.
    pub fn now(step: &Step) -> Self {
        Self {
            rows: step.rows.len(),
            at: Instant::now(),
        }
    }
}

/// Times the steps of some ranks, which run one after the other.
#[derive(Debug)]
pub(super) struct StepTimer {
    meter: GroupMeter,
    free_since: Instant,
}

impl StepTimer {
    pub fn new(meter: GroupMeter) -> Self {
        Self {
            meter,
            free_since: Instant::now(),
        }
    }

    /// A step has run: since it was given, or since the one before it was done.
    pub fn done(&mut self, given: &Given, output: &StepOutput) {
        let now = Instant::now();
        let took = now.saturating_duration_since(given.at.max(self.free_since));
        self.free_since = now;
        self.meter.steps.inc();
        self.meter.rows.inc_by(given.rows as u64);
        let tokens = output.drawn.iter().flatten().count();
        self.meter.tokens.inc_by(tokens as u64);
        self.meter.step_seconds.observe(took.as_secs_f64());
    }
}

/// How a process stands at the moment it is asked.
#[derive(Debug)]
struct StandingMetrics {
    standing: watch::Receiver<Standing>,
    leads: bool,
}

impl Collector for StandingMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Standing { epoch, state, load } = *self.standing.borrow();
        let ready = u64::from(state == WorkerState::Ready);
        let mut gauges = vec![
            ("backbone_epoch", "Epoch of the group; 0: none", epoch),
            ("backbone_ready", "Whether the group is complete", ready),
        ];
        if self.leads {
            gauges.extend([
                ("backbone_queue_jobs", "Jobs that wait", load.queued),
                ("backbone_running_jobs", "Jobs that run", load.running),
                ("backbone_backlog_rows", "Rows outstanding", load.backlog),
                ("kv_blocks", "K/V blocks", load.kv_blocks),
                (
                    "kv_blocks_free",
                    "K/V blocks that nothing holds",
                    load.kv_blocks_free,
                ),
            ]);
        }
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use xomni_cluster::record::Load;

    use super::*;
    use crate::process::Metrics;

    fn shown(leads: bool) -> String {
        let mut registry = Metrics::registry();
        let load = Load {
            queued: 2,
            kv_blocks_free: 5,
            ..Load::default()
        };
        let (_sender, standing) = watch::channel(Standing {
            load,
            ..Standing::ready(7)
        });
        let meter = GroupMeter::default();
        meter.register(&mut registry, standing, leads);
        meter.epoch_lost();
        let step = Step {
            id: 0,
            admissions: vec![],
            rows: vec![],
            samples: vec![],
        };
        let output = StepOutput {
            step: 0,
            drawn: vec![],
            logits: vec![],
        };
        StepTimer::new(meter).done(&Given::now(&step), &output);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        text
    }

    #[test]
    fn names_are_those_an_operator_looks_for() {
        let everyone = [
            "xomni_backbone_epoch 7",
            "xomni_backbone_ready 1",
            "xomni_backbone_epochs_lost_total 1",
            "xomni_backbone_steps_total 1",
            "xomni_backbone_rows_total 0",
            "xomni_backbone_tokens_total 0",
            "xomni_backbone_step_seconds_count 1",
        ];
        let leader = ["xomni_backbone_queue_jobs 2", "xomni_kv_blocks_free 5"];
        let (led, followed) = (shown(true), shown(false));
        let has = |text: &str, line: &str| text.lines().any(|shown| shown == line);
        for line in everyone {
            assert!(has(&led, line) && has(&followed, line), "{line} in {led}");
        }
        for line in leader {
            assert!(has(&led, line) && !has(&followed, line), "{line} in {led}");
        }
    }
}
