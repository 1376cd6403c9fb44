//! What a backbone counts of its jobs.

use std::time::Instant;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use xomni_engine::Error;

/// Counters of a backbone's jobs. Clones count together.
#[derive(Debug, Clone)]
pub struct BackboneMeter {
    jobs: Family<OutcomeLabel, Counter>,
    first_token_seconds: Histogram,
    job_seconds: Histogram,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// All its tokens were drawn.
    Done,
    /// Nobody waits for it any more.
    Cancelled,
    /// Its deadline passed.
    DeadlineExceeded,
    /// The queue was full.
    Rejected,
    /// It can never run.
    Invalid,
    /// The model gave nothing to draw from.
    Failed,
    /// The group was lost.
    Lost,
}

impl Outcome {
    fn of(error: &Error) -> Self {
        match error {
            Error::Cancelled => Self::Cancelled,
            Error::DeadlineExceeded => Self::DeadlineExceeded,
            Error::Capacity { .. } => Self::Rejected,
            Error::BadInput { .. } => Self::Invalid,
            Error::GroupLost(_) | Error::WorkerLost { .. } => Self::Lost,
            Error::NotFinite { .. }
            | Error::Unsupported { .. }
            | Error::Checkpoint { .. }
            | Error::Io { .. } => Self::Failed,
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder,
    ) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Rejected => "rejected",
            Self::Invalid => "invalid",
            Self::Failed => "failed",
            Self::Lost => "lost",
        };
        name.encode(encoder)
    }
}

impl Default for BackboneMeter {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.01, 2.0, 16));
        Self {
            jobs: Family::default(),
            first_token_seconds: seconds(),
            job_seconds: seconds(),
        }
    }
}

impl BackboneMeter {
    /// Makes its counters part of what an operator sees, as `xomni_backbone_…`.
    pub fn register(&self, registry: &mut Registry) {
        let backbone = registry.sub_registry_with_prefix("backbone");
        backbone.register("jobs", "Jobs ended, by outcome", self.jobs.clone());
        backbone.register(
            "first_token_seconds",
            "Time from a job's arrival to its first token: queue and prefill",
            self.first_token_seconds.clone(),
        );
        backbone.register(
            "job_seconds",
            "Time from a job's arrival to its last token",
            self.job_seconds.clone(),
        );
    }

    /// A job that was taken just now.
    pub(super) fn job(&self) -> JobMeter {
        JobMeter {
            meter: self.clone(),
            arrived: Instant::now(),
            begun: false,
            outcome: Outcome::Cancelled,
        }
    }

    /// A job was not taken.
    pub(super) fn refused(&self, error: &Error) {
        self.count(Outcome::of(error));
    }

    fn count(&self, outcome: Outcome) {
        self.jobs.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

/// A job that was taken. It is counted when this is dropped, as cancelled unless it ended.
#[derive(Debug)]
pub(super) struct JobMeter {
    meter: BackboneMeter,
    arrived: Instant,
    begun: bool,
    outcome: Outcome,
}

impl JobMeter {
    /// A token was drawn.
    pub fn token(&mut self) {
        if !self.begun {
            self.begun = true;
            let waited = self.arrived.elapsed().as_secs_f64();
            self.meter.first_token_seconds.observe(waited);
        }
    }

    /// All tokens were drawn.
    pub fn done(&mut self) {
        self.outcome = Outcome::Done;
        let took = self.arrived.elapsed().as_secs_f64();
        self.meter.job_seconds.observe(took);
    }

    /// It ends without all its tokens.
    pub fn failed(&mut self, error: &Error) {
        self.outcome = Outcome::of(error);
    }
}

impl Drop for JobMeter {
    fn drop(&mut self) {
        self.meter.count(self.outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Metrics;

    #[test]
    fn every_job_is_counted_once_by_its_end() {
        let mut registry = Metrics::registry();
        let meter = BackboneMeter::default();
        meter.register(&mut registry);
        let mut done = meter.job();
        done.token();
        done.token();
        done.done();
        drop(done);
        drop(meter.job());
        meter
            .job()
            .failed(&Error::GroupLost("a rank has ended".into()));
        meter.refused(&Error::DeadlineExceeded);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            r#"xomni_backbone_jobs_total{outcome="done"} 1"#,
            r#"xomni_backbone_jobs_total{outcome="cancelled"} 1"#,
            r#"xomni_backbone_jobs_total{outcome="lost"} 1"#,
            r#"xomni_backbone_jobs_total{outcome="deadline_exceeded"} 1"#,
            "xomni_backbone_first_token_seconds_count 1",
            "xomni_backbone_job_seconds_count 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} in {text}");
        }
    }
}
