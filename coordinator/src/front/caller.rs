//! Who asks, for how long, and in which trace.

use std::time::Instant;

use tonic::metadata::MetadataMap;
use tracing::{Span, field};
use xomni_worker::telemetry;

use super::access::Pass;

/// The one who makes a call.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What it may ask for.
    pub pass: Pass,
    /// Whose share of the service it takes, if no key says so.
    pub tenant: String,
    /// When it gives up, if it has said so.
    pub deadline: Option<Instant>,
    /// Names the request in logs and traces: 32 hexadecimal digits; chosen where `None`.
    pub request_id: Option<String>,
    /// What the call's work is part of.
    pub span: Span,
}

impl Caller {
    /// Whose share of the service it takes.
    pub fn tenant(&self) -> &str {
        self.pass.name().unwrap_or(&self.tenant)
    }

    /// The span of a call, within the trace that its metadata carries.
    pub fn span(metadata: &MetadataMap) -> Span {
        let span = tracing::info_span!(
            "request",
            otel.kind = "server",
            request_id = field::Empty,
            trace_id = field::Empty
        );
        telemetry::adopt(&span, metadata);
        span
    }
}
