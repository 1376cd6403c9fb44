//! A trace on its way from one process to the next: W3C trace context in gRPC metadata, or in a
//! message.

use std::{collections::HashMap, sync::Arc};

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{Status, TraceContextExt},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{KeyRef, MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Metadata of answers that names the trace of the request, for those who ask why.
pub const TRACE_ID: &str = "x-trace-id";
/// The W3C header that carries a trace.
const TRACEPARENT: &str = "traceparent";

/// Writes the current span's context into a call's metadata.
pub fn inject(metadata: &mut MetadataMap) {
    let context = Span::current().context();
    TraceContextPropagator::new().inject_context(&context, &mut Outgoing(metadata));
}

/// The context that a call's metadata carries.
pub fn extract(metadata: &MetadataMap) -> Context {
    TraceContextPropagator::new().extract(&Incoming(metadata))
}

/// Makes `span` a child of the caller's span and records the trace in its field `trace_id`, from
/// where every log line within `span` has it. To be called before `span` is entered.
pub fn adopt(span: &Span, metadata: &MetadataMap) {
    join(span, extract(metadata));
}

fn join(span: &Span, parent: Context) {
    // Fails only in a process without telemetry: there is no trace then.
    let _ = span.set_parent(parent);
    if let Some(trace) = trace_id(span) {
        span.record("trace_id", trace);
    }
}

/// Writes the trace of `span` into the metadata of an answer, as [`TRACE_ID`].
pub fn tell(span: &Span, metadata: &mut MetadataMap) {
    if let Some(trace) = trace_id(span).and_then(|trace| trace.parse().ok()) {
        metadata.insert(TRACE_ID, trace);
    }
}

/// Marks the work that `span` stands for as failed.
pub fn fail(span: &Span, reason: impl ToString) {
    span.set_status(Status::error(reason.to_string()));
}

/// Notes a point in the work that `span` stands for; nothing is logged.
pub fn event(span: &Span, name: &'static str) {
    span.add_event(name, vec![]);
}

/// A span as another process is told of it: a W3C `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent(Arc<str>);

impl TraceParent {
    /// Names `span`; `None` if nobody wants its trace.
    pub fn of(span: &Span) -> Option<Self> {
        let context = span.context();
        if !context.span().span_context().is_sampled() {
            return None;
        }
        let mut headers = HashMap::new();
        TraceContextPropagator::new().inject_context(&context, &mut headers);
        headers
            .get(TRACEPARENT)
            .map(|text| Self(text.as_str().into()))
    }

    /// Reads what another process wrote; `None` if it is no `traceparent`.
    pub fn parse(text: &str) -> Option<Self> {
        let parent = Self(text.into());
        let valid = parent.context().span().span_context().is_valid();
        valid.then_some(parent)
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes `span` a child of the span that this names, as [`adopt`] does.
    pub fn adopt(&self, span: &Span) {
        join(span, self.context());
    }

    fn context(&self) -> Context {
        let headers = HashMap::from([(TRACEPARENT.to_owned(), self.0.to_string())]);
        TraceContextPropagator::new().extract(&headers)
    }
}

/// The trace that `span` belongs to, as 32 hexadecimal digits; `None` in a process without
/// telemetry.
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
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
    use tracing_subscriber::layer::SubscriberExt;

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
            let parent = TraceParent::of(&caller).expect("sampled");
            let parent = TraceParent::parse(parent.as_str()).expect("valid");
            let told = tracing::info_span!("told");
            parent.adopt(&told);
        });
        let spans = exporter.get_finished_spans().expect("exported");
        let [told, served, caller] = &spans[..] else {
            panic!("{spans:?}")
        };
        assert_eq!(served.parent_span_id, caller.span_context.span_id());
        assert_eq!(told.parent_span_id, caller.span_context.span_id());
    }

    #[test]
    fn foreign_metadata_is_no_trace() {
        let mut metadata = MetadataMap::new();
        metadata.insert("traceparent", "00-zz-1".parse().expect("ascii"));
        assert!(!extract(&metadata).span().span_context().is_valid());
        assert_eq!(TraceParent::parse("00-zz-1"), None);
    }
}
