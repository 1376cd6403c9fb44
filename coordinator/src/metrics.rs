//! What an operator sees of a coordinator.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tonic::Code;

use crate::routing::Stage;

/// Bounds of durations, in seconds.
const SECONDS: [f64; 13] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0,
];

/// The metrics of a coordinator; clones are the same ones.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<CodeLabel, Counter>,
    /// Requests that run.
    pub in_flight: Gauge,
    /// Requests that wait to run.
    pub queued: Gauge,
    /// From the arrival of a request to its end, whatever it is.
    pub seconds: Histogram,
    /// From the arrival of a request to its start.
    pub queue_seconds: Histogram,
    /// From a job's routing to a group to its first token, retries included.
    pub first_token_seconds: Histogram,
    /// Pictures delivered.
    pub images: Counter,
    /// Tokens received from groups, each once.
    pub tokens: Counter,
    /// Whether etcd is there.
    pub etcd_connected: Gauge,
    retries: Family<StageLabel, Counter>,
    ready: Family<StageLabel, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: Stage,
}

impl EncodeLabelValue for Stage {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        self.name().encode(encoder)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(SECONDS);
        Self {
            requests: Family::default(),
            in_flight: Gauge::default(),
            queued: Gauge::default(),
            seconds: seconds(),
            queue_seconds: seconds(),
            first_token_seconds: seconds(),
            images: Counter::default(),
            tokens: Counter::default(),
            etcd_connected: Gauge::default(),
            retries: Family::default(),
            ready: Family::default(),
        }
    }
}

impl Metrics {
    /// Metrics that `registry` exposes, which puts `xomni_` before their names.
    pub fn register(registry: &mut Registry) -> Self {
        let new = Self::default();
        registry.register(
            "requests",
            "Requests ended, by gRPC status",
            new.requests.clone(),
        );
        registry.register(
            "requests_in_flight",
            "Requests that run",
            new.in_flight.clone(),
        );
        registry.register("queue_requests", "Requests that wait", new.queued.clone());
        registry.register(
            "request_seconds",
            "Time from a request's arrival to its end",
            new.seconds.clone(),
        );
        registry.register(
            "queue_seconds",
            "Time from a request's arrival to its start",
            new.queue_seconds.clone(),
        );
        registry.register(
            "first_token_seconds",
            "Time from a job's routing to its first token",
            new.first_token_seconds.clone(),
        );
        registry.register("images", "Pictures delivered", new.images.clone());
        registry.register(
            "tokens",
            "Tokens received from groups, replays left out",
            new.tokens.clone(),
        );
        registry.register(
            "etcd_connected",
            "Whether etcd tells of changes as they come",
            new.etcd_connected.clone(),
        );
        registry.register(
            "retries",
            "Attempts that failed and were followed by another, by stage",
            new.retries.clone(),
        );
        registry.register(
            "ready_workers",
            "Workers that take work, by stage",
            new.ready.clone(),
        );
        new
    }

    /// Requests that ended with this status.
    pub fn requests(&self, code: Code) -> Counter {
        let code = name(code);
        self.requests.get_or_create_owned(&CodeLabel { code })
    }

    /// Attempts at this stage that failed and were followed by another.
    pub fn retries(&self, stage: Stage) -> Counter {
        self.retries.get_or_create_owned(&StageLabel { stage })
    }

    /// Workers that take work of this stage.
    pub fn ready(&self, stage: Stage) -> Gauge {
        self.ready.get_or_create_owned(&StageLabel { stage })
    }
}

/// The name that gRPC gives a code.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_an_operator_looks_for() {
        let mut registry = xomni_worker::process::Metrics::registry();
        let metrics = Metrics::register(&mut registry);
        metrics.requests(Code::ResourceExhausted).inc();
        metrics.retries(Stage::Backbone).inc();
        metrics.ready(Stage::Decoder).set(2);
        metrics.seconds.observe(0.3);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            r#"xomni_requests_total{code="RESOURCE_EXHAUSTED"} 1"#,
            r#"xomni_retries_total{stage="backbone"} 1"#,
            r#"xomni_ready_workers{stage="decoder"} 2"#,
            r#"xomni_request_seconds_bucket{le="0.5"} 1"#,
            "xomni_requests_in_flight 0",
            "xomni_queue_requests 0",
            "xomni_tokens_total 0",
            "xomni_etcd_connected 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
