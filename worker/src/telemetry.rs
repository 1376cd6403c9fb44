//! Logs and traces of a process, and how a trace crosses from one process to the next: W3C trace
//! context in gRPC metadata, spans exported over OTLP where an endpoint is configured.

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tonic::metadata::{KeyRef, MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Keeps the exporter of a process. Spans still waiting are sent when it is dropped.
#[must_use = "dropping it ends the export of spans"]
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
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
        let logs = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_filter(filter);
        let provider = exporter().map(|exporter| {
            SdkTracerProvider::builder()
                .with_batch_exporter(exporter)
                .with_resource(Resource::builder().with_service_name(service).build())
                .build()
        });
        let traces = provider.as_ref().map(|provider| {
            // Spans are for operators whatever the log level; those of libraries are not.
            let ours = EnvFilter::new("off,xomni=info,xomni_worker=info,xomni_coordinator=info");
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(service))
                .with_filter(ours)
        });
        // A second start, as by two services in one test process, keeps the first.
        let _ = tracing_subscriber::registry()
            .with(logs)
            .with(traces)
            .try_init();
        Self { provider }
    }
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
        if let Some(provider) = &self.provider
            && let Err(error) = provider.shutdown()
        {
            eprintln!("the last spans could not be exported: {error}");
        }
    }
}

/// Writes the current span's context into a call's metadata.
pub fn inject(metadata: &mut MetadataMap) {
    let context = Span::current().context();
    TraceContextPropagator::new().inject_context(&context, &mut Outgoing(metadata));
}

/// The context that a call's metadata carries.
pub fn extract(metadata: &MetadataMap) -> Context {
    TraceContextPropagator::new().extract(&Incoming(metadata))
}

/// Makes `span` a child of the caller's span.
pub fn adopt(span: &Span, metadata: &MetadataMap) {
    // Fails only where no exporter is configured: there is no trace to join then.
    let _ = span.set_parent(extract(metadata));
}

/// The trace that `span` belongs to, as 32 hexadecimal digits; `None` where nothing is exported.
pub fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span_context = context.span().span_context().clone();
    span_context
        .is_valid()
        .then(|| span_context.trace_id().to_string())
}

struct Outgoing<'a>(&'a mut MetadataMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

struct Incoming<'a>(&'a MetadataMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        let ascii = |key| match key {
            KeyRef::Ascii(key) => Some(key.as_str()),
            KeyRef::Binary(_) => None,
        };
        self.0.keys().filter_map(ascii).collect()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::trace::InMemorySpanExporter;

    use super::*;

    #[test]
    fn a_trace_crosses_metadata() {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let mut metadata = MetadataMap::new();
            let caller = tracing::info_span!("caller");
            caller.in_scope(|| inject(&mut metadata));
            assert!(metadata.contains_key("traceparent"));
            let served = tracing::info_span!("served");
            adopt(&served, &metadata);
            assert_eq!(trace_id(&served), trace_id(&caller));
            assert_eq!(trace_id(&served).map(|id| id.len()), Some(32));
        });
        let spans = exporter.get_finished_spans().expect("exported");
        let [served, caller] = &spans[..] else {
            panic!("{spans:?}")
        };
        assert_eq!(served.parent_span_id, caller.span_context.span_id());
    }

    #[test]
    fn foreign_metadata_is_no_trace() {
        let mut metadata = MetadataMap::new();
        metadata.insert("traceparent", "00-zz-1".parse().expect("ascii"));
        assert!(!extract(&metadata).span().span_context().is_valid());
    }
}
