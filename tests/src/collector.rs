//! An OTLP endpoint within the test: it keeps every span that processes export.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, span::SpanKind, status::StatusCode},
};
use tonic::{Request, Response, Status, service::Routes};

use crate::{loopback::Loopback, process::wait_for};

/// A span as it was exported.
#[derive(Debug, Clone)]
pub struct Exported {
    /// `service.name` of the process.
    pub service: String,
    /// `process.pid` of the process.
    pub pid: String,
    /// The trace, in hexadecimal digits.
    pub trace: String,
    /// The span, in hexadecimal digits.
    pub id: String,
    /// Its parent; empty for none.
    pub parent: String,
    /// What it stands for.
    pub name: String,
    /// Client, server or internal.
    pub kind: SpanKind,
    /// Begin and end, in nanoseconds since 1970.
    pub time: (u64, u64),
    /// Attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// Whether its status is an error.
    pub failed: bool,
    /// Names of its events.
    pub events: Vec<String>,
}

/// The endpoint. It is gone when this is dropped.
#[derive(Debug)]
pub struct Collector {
    server: Loopback,
    spans: Arc<Mutex<Vec<Exported>>>,
}

impl Collector {
    /// Serves on a free port.
    pub fn start() -> Self {
        let spans = Arc::default();
        let sink = Sink {
            spans: Arc::clone(&spans),
        };
        let server = Loopback::start(Routes::new(TraceServiceServer::new(sink)));
        Self { server, spans }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` has to be.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// The spans of a trace that have come so far.
    pub fn trace(&self, id: &str) -> Trace {
        let spans = self.spans.lock().expect("no panic");
        let of_trace = spans.iter().filter(|span| span.trace == id);
        Trace(of_trace.cloned().collect())
    }

    /// Waits until a trace is as `complete` wants it.
    ///
    /// # Panics
    /// If it never is; with its spans then.
    pub fn wait_for_trace(&self, id: &str, complete: impl Fn(&Trace) -> bool) -> Trace {
        let _shown = ShownOnFailure(self, id);
        wait_for("a complete trace", || {
            Some(self.trace(id)).filter(|trace| complete(trace))
        })
    }
}

/// Shows what there is of a trace if the wait for the rest of it fails.
struct ShownOnFailure<'a>(&'a Collector, &'a str);

impl Drop for ShownOnFailure<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.trace(self.1));
        }
    }
}

struct Sink {
    spans: Arc<Mutex<Vec<Exported>>>,
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request.into_inner().resource_spans;
        let exported = spans.into_iter().flat_map(of_resource);
        self.spans.lock().expect("no panic").extend(exported);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn of_resource(spans: ResourceSpans) -> Vec<Exported> {
    let resource = texts(spans.resource.unwrap_or_default().attributes);
    let attribute = |key| resource.get(key).cloned().unwrap_or_default();
    let (service, pid) = (attribute("service.name"), attribute("process.pid"));
    let spans = spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
    spans
        .map(|span| exported(span, service.clone(), pid.clone()))
        .collect()
}

fn exported(span: Span, service: String, pid: String) -> Exported {
    Exported {
        service,
        pid,
        kind: span.kind(),
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name,
        time: (span.start_time_unix_nano, span.end_time_unix_nano),
        attributes: texts(span.attributes),
        failed: span.status.is_some_and(|s| s.code() == StatusCode::Error),
        events: span.events.into_iter().map(|event| event.name).collect(),
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pairs = attributes.into_iter();
    pairs.map(|pair| (pair.key, text(pair.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Spans of one trace.
#[derive(Debug, Clone)]
pub struct Trace(pub Vec<Exported>);

impl Trace {
    /// The spans of this name in a service.
    pub fn named<'a>(
        &'a self,
        service: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Exported> {
        let matches = move |span: &&Exported| span.service == service && span.name == name;
        self.0.iter().filter(matches)
    }

    /// The spans that have no parent among these, but for children of `outside`.
    pub fn orphans(&self, outside: &str) -> Vec<&Exported> {
        let known: BTreeSet<&str> = self.0.iter().map(|span| span.id.as_str()).collect();
        let lost = |span: &&Exported| span.parent != outside && !known.contains(&*span.parent);
        self.0.iter().filter(lost).collect()
    }

    /// Pairs of a parent and its child.
    pub fn edges(&self) -> impl Iterator<Item = (&Exported, &Exported)> {
        self.0.iter().flat_map(move |parent| {
            let children = self.0.iter().filter(|span| span.parent == parent.id);
            children.map(move |child| (parent, child))
        })
    }
}

impl std::fmt::Display for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for span in &self.0 {
            let (id, parent, name, service) = (&span.id, &span.parent, &span.name, &span.service);
            let failed = if span.failed { "failed" } else { "" };
            writeln!(f, "{id} in {parent:16}  {service:18} {name} {failed}")?;
        }
        Ok(())
    }
}
