//! Logs and traces of a process. Every request has a trace, which its log lines name; its spans are
//! exported over OTLP where an endpoint is configured.

mod trace;

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

pub use trace::{TRACE_ID, TraceParent, adopt, event, extract, fail, inject, tell, trace_id};

/// Keeps the exporter of a process. Spans still waiting are sent when it is dropped.
#[must_use = "dropping it ends the export of spans"]
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
}

/// Variables of the OpenTelemetry specification that name an OTLP endpoint.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

impl Telemetry {
    /// Logs to standard error, filtered by `RUST_LOG` (`info` by default), and exports spans as
    /// `service` over OTLP if `OTEL_EXPORTER_OTLP_ENDPOINT` is set. Call it once, inside the
    /// runtime.
    pub fn start(service: &'static str) -> Self {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        // Whatever is logged says what it belongs to.
        let filter = filter.or(filter_fn(is_our_span).with_max_level_hint(Level::INFO));
        let logs = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_filter(filter);
        let process = KeyValue::new("process.pid", i64::from(std::process::id()));
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(process);
        let provider = SdkTracerProvider::builder().with_resource(resource.build());
        let provider = match exporter() {
            Some(exporter) => provider.with_batch_exporter(exporter).build(),
            None => provider.build(),
        };
        let traces = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(service))
            // Spans are for operators whatever the log level; those of libraries are not.
            .with_filter(EnvFilter::new(
                "off,xomni=info,xomni_worker=info,xomni_coordinator=info",
            ));
        // A second start, as by two services in one test process, keeps the first.
        let _ = tracing_subscriber::registry()
            .with(logs)
            .with(traces)
            .try_init();
        Self { provider }
    }
}

fn is_our_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with("xomni")
}

fn exporter() -> Option<SpanExporter> {
    let configured = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if !ENDPOINTS.into_iter().any(configured) {
        return None;
    }
    match SpanExporter::builder().with_tonic().build() {
        Ok(exporter) => Some(exporter),
        Err(error) => {
            eprintln!("no traces are exported: {error}");
            None
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            eprintln!("the last spans could not be exported: {error}");
        }
    }
}
