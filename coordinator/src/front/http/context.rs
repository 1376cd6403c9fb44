//! What is known of every request before its route is: its name and its trace. Whatever is
//! answered carries the name; problems are written here.

use std::time::Instant;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tonic::metadata::MetadataMap;
use tracing::Span;
use xomni_worker::telemetry;

use super::problem::Problem;
use crate::{
    front::{access::Pass, caller::Caller},
    request::random_id,
};

/// Names a request, in both directions.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Where all paths of the API are.
const API: &str = "/v1/";
/// Longest name that a client can give, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// A request over HTTP.
#[derive(Debug, Clone)]
pub struct Context {
    /// Its name here: 32 hexadecimal digits.
    id: String,
    /// Its name as the client gave it, or else as here.
    shown: HeaderValue,
    span: Span,
}

impl Context {
    fn new(path: &str, headers: &HeaderMap) -> Self {
        let id = random_id();
        let given = headers.get(REQUEST_ID).filter(|given| sane(given));
        let own = || HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("unnamed"));
        Self {
            shown: given.cloned().unwrap_or_else(own),
            // What asks for health and metrics, again and again, is nobody's request.
            span: match path.starts_with(API) {
                true => Caller::span(&MetadataMap::from_headers(headers.clone())),
                false => Span::none(),
            },
            id,
        }
    }

    /// The name that the client knows the request by.
    pub fn request_id(&self) -> &str {
        self.shown.to_str().unwrap_or_default()
    }

    /// The trace that the request is part of.
    pub fn trace_id(&self) -> Option<String> {
        telemetry::trace_id(&self.span)
    }

    /// The one who makes the request.
    pub fn caller(&self, pass: Pass) -> Caller {
        Caller {
            pass,
            tenant: String::new(),
            deadline: None::<Instant>,
            request_id: Some(self.id.clone()),
            span: self.span.clone(),
        }
    }
}

fn sane(given: &HeaderValue) -> bool {
    (1..=MAX_REQUEST_ID).contains(&given.len()) && given.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// Gives a request its [`Context`], and its answer the name and, where it is a [`Problem`], a body.
pub async fn layer(mut request: Request, next: Next) -> Response {
    let context = Context::new(request.uri().path(), request.headers());
    request.extensions_mut().insert(context.clone());
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response = problem.answer(&context);
    }
    let trace = context.trace_id();
    if let Some(trace) = trace.and_then(|trace| trace.try_into().ok()) {
        response.headers_mut().insert(telemetry::TRACE_ID, trace);
    }
    response.headers_mut().insert(REQUEST_ID, context.shown);
    response
}
