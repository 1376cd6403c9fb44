//! Metrics, in the text format that Prometheus reads.

use std::{net::SocketAddr, path::Path, sync::Arc};

use axum::{
    Router,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tokio::{net::TcpListener, task::JoinSet};
use xomni_cluster::record::Load;
use xomni_engine::{Error, Result};

/// What OpenMetrics calls its text.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /metrics` at an address of its own. Dropping it ends that.
#[derive(Debug)]
pub struct Metrics {
    address: SocketAddr,
    _server: JoinSet<()>,
}

impl Metrics {
    /// Names begin with `xomni_`.
    pub fn registry() -> Registry {
        Registry::with_prefix("xomni")
    }

    /// Shows `registry` at `address`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the address if it cannot be listened at.
    pub async fn serve(address: SocketAddr, registry: Arc<Registry>) -> Result<Self> {
        let io = |error| Error::io(Path::new(&address.to_string()), error);
        let listener = TcpListener::bind(address).await.map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let show = move || async move { Self::show(&registry) };
        let mut server = JoinSet::new();
        server.spawn(async move {
            let routes = Router::new().route("/metrics", get(show));
            if let Err(error) = axum::serve(listener, routes).await {
                tracing::error!(%error, "metrics are not shown any more");
            }
        });
        Ok(Self {
            address,
            _server: server,
        })
    }

    /// The answer to who reads metrics.
    pub fn show(registry: &Registry) -> Response {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, registry);
        ([(CONTENT_TYPE, TEXT)], text).into_response()
    }

    /// Where it listens; the port is the one that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Counters of a backbone. Clones count together.
#[derive(Debug, Clone)]
pub struct BackboneMeter {
    queue_jobs: Gauge,
    running_jobs: Gauge,
    backlog_rows: Gauge,
    epoch: Gauge,
    steps: Counter,
    rows: Counter,
    tokens: Counter,
    step_seconds: Histogram,
    kv_blocks: Gauge,
    kv_blocks_free: Gauge,
}

impl Default for BackboneMeter {
    fn default() -> Self {
        Self {
            queue_jobs: Gauge::default(),
            running_jobs: Gauge::default(),
            backlog_rows: Gauge::default(),
            epoch: Gauge::default(),
            steps: Counter::default(),
            rows: Counter::default(),
            tokens: Counter::default(),
            step_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            kv_blocks: Gauge::default(),
            kv_blocks_free: Gauge::default(),
        }
    }
}

impl BackboneMeter {
    /// Makes its counters part of what an operator sees, as `xomni_backbone_…` and `xomni_kv_…`.
    pub fn register(&self, registry: &mut Registry) {
        let backbone = registry.sub_registry_with_prefix("backbone");
        let gauges = [
            ("queue_jobs", "Jobs that wait", &self.queue_jobs),
            ("running_jobs", "Jobs that run", &self.running_jobs),
            ("backlog_rows", "Rows outstanding", &self.backlog_rows),
            ("epoch", "Epoch of the group", &self.epoch),
        ];
        for (name, help, gauge) in gauges {
            backbone.register(name, help, gauge.clone());
        }
        let counters = [
            ("steps", "Steps run", &self.steps),
            ("rows", "Rows run", &self.rows),
            ("tokens", "Tokens drawn", &self.tokens),
        ];
        for (name, help, counter) in counters {
            backbone.register(name, help, counter.clone());
        }
        backbone.register("step_seconds", "Time of a step", self.step_seconds.clone());
        let kv = registry.sub_registry_with_prefix("kv");
        kv.register("blocks", "K/V blocks", self.kv_blocks.clone());
        kv.register(
            "blocks_free",
            "K/V blocks that nothing holds",
            self.kv_blocks_free.clone(),
        );
    }

    /// Counts a step of so many rows that drew so many tokens.
    pub fn step(&self, rows: usize, tokens: usize, seconds: f64) {
        self.steps.inc();
        self.rows.inc_by(rows as u64);
        self.tokens.inc_by(tokens as u64);
        self.step_seconds.observe(seconds);
    }

    /// Shows what the backbone holds, and in which epoch.
    pub fn show(&self, load: &Load, epoch: u64) {
        let values = [
            (&self.queue_jobs, load.queued),
            (&self.running_jobs, load.running),
            (&self.backlog_rows, load.backlog),
            (&self.kv_blocks, load.kv_blocks),
            (&self.kv_blocks_free, load.kv_blocks_free),
            (&self.epoch, epoch),
        ];
        for (gauge, value) in values {
            gauge.set(value.try_into().unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_an_operator_looks_for() {
        let mut registry = Metrics::registry();
        let meter = BackboneMeter::default();
        meter.register(&mut registry);
        meter.step(8, 3, 0.25);
        let load = Load {
            queued: 2,
            kv_blocks_free: 5,
            ..Load::default()
        };
        meter.show(&load, 7);
        let mut text = String::new();
        encode(&mut text, &registry).expect("text");
        for line in [
            "xomni_backbone_queue_jobs 2",
            "xomni_backbone_steps_total 1",
            "xomni_backbone_tokens_total 3",
            "xomni_backbone_step_seconds_sum 0.25",
            "xomni_backbone_epoch 7",
            "xomni_kv_blocks_free 5",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} in {text}");
        }
    }
}
