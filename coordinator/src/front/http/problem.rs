//! What a client is told of a failure, in OpenAI's envelope: the one place that decides it.

use std::time::Duration;

use axum::{
    Json,
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tonic::Code;
use xomni_engine::Error;

use super::context::Context;
use crate::front::failure::Failure;

/// Status of a request whose client has left, as nginx has it.
const CLIENT_CLOSED: u16 = 499;

/// A failure as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    message: Box<str>,
    param: Option<Box<str>>,
    limit: Option<Box<str>>,
    value: Option<Box<str>>,
    retry_after: Option<Duration>,
}

/// The body of an answer that is a failure.
#[derive(Debug, Serialize)]
pub struct Envelope {
    error: Body,
}

#[derive(Debug, Serialize)]
struct Body {
    message: Box<str>,
    r#type: &'static str,
    param: Option<Box<str>>,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Box<str>>,
    request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

impl Problem {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: &'static str,
        message: impl Into<Box<str>>,
    ) -> Self {
        Self {
            status,
            kind,
            code,
            message: message.into(),
            param: None,
            limit: None,
            value: None,
            retry_after: None,
        }
    }

    fn invalid(status: StatusCode, code: &'static str, message: impl Into<Box<str>>) -> Self {
        Self::new(status, "invalid_request_error", code, message)
    }

    /// A body that is not JSON.
    pub fn not_json(reason: String) -> Self {
        let message = format!("the body is not JSON: {reason}");
        Self::invalid(StatusCode::BAD_REQUEST, "invalid_json", message)
    }

    /// A field that is not of its type, or not among the values that it can have.
    pub fn wrong_type(field: String, limit: String, value: Option<String>) -> Self {
        let given = value.as_ref().map(|value| format!(", got {value}"));
        let message = format!("{field}: {limit}{}", given.unwrap_or_default());
        Self {
            param: Some(field.into()),
            limit: Some(limit.into()),
            value: value.map(Into::into),
            ..Self::invalid(StatusCode::BAD_REQUEST, "invalid_type", message)
        }
    }

    /// A body that is not declared to be what the route reads.
    pub fn media_type(given: &str) -> Self {
        let limit = "must be application/json";
        Self {
            limit: Some(limit.into()),
            value: Some(given.into()),
            ..Self::invalid(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                format!("content-type: {limit}, got {given:?}"),
            )
        }
    }

    /// A body that is larger than the route reads.
    pub fn too_large(limit: usize) -> Self {
        let limit = format!("must be at most {limit} bytes");
        let message = format!("body: {limit}");
        Self {
            limit: Some(limit.into()),
            ..Self::invalid(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
        }
    }

    /// A body that does not arrive in time.
    pub fn too_slow(limit: Duration) -> Self {
        let limit = format!("must arrive within {} s", limit.as_secs_f32());
        let message = format!("body: {limit}");
        Self {
            limit: Some(limit.into()),
            ..Self::invalid(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
        }
    }

    /// A body that breaks off.
    pub fn broken_body(reason: String) -> Self {
        let message = format!("the body could not be read: {reason}");
        Self::invalid(StatusCode::BAD_REQUEST, "invalid_body", message)
    }

    /// A path that nothing is at.
    pub fn no_route(path: &str) -> Self {
        let message = format!("nothing is served at {path}");
        Self::invalid(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// What a path names is not here.
    pub fn missing(error: &Error) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: "not_found",
            ..Self::of_error(error)
        }
    }

    /// A method that a path does not have.
    pub fn wrong_method(method: &Method) -> Self {
        let message = format!("{method} is not served here");
        Self::invalid(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            message,
        )
    }

    /// A model that is not served.
    pub fn no_model(limit: String, given: String) -> Self {
        let message = format!("model: {limit}, got {given}");
        Self {
            param: Some("model".into()),
            limit: Some(limit.into()),
            value: Some(given.into()),
            ..Self::invalid(StatusCode::NOT_FOUND, "model_not_found", message)
        }
    }

    /// An address that leads nowhere any more.
    pub fn expired() -> Self {
        let message = "there is no such picture, or its address has expired";
        Self::invalid(StatusCode::NOT_FOUND, "expired_url", message)
    }

    /// An idempotency key that comes with another request than before.
    pub fn key_reused() -> Self {
        let message = "Idempotency-Key: must come with the same request as before, got another";
        Self {
            param: Some("Idempotency-Key".into()),
            ..Self::invalid(StatusCode::CONFLICT, "idempotency_key_reused", message)
        }
    }

    /// Work that ended without an answer.
    pub fn lost() -> Self {
        let message = "the answer broke off";
        Self::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// What the model cannot do.
    pub fn unsupported(field: Option<&str>, reason: impl Into<Box<str>>) -> Self {
        Self {
            param: field.map(Into::into),
            ..Self::invalid(StatusCode::BAD_REQUEST, "unsupported", reason)
        }
    }

    /// Work that does not get on.
    pub fn stalled(running: usize, still: Duration) -> Self {
        let message = format!(
            "none of {running} running requests has got on for {} s",
            still.as_secs()
        );
        Self::server(StatusCode::SERVICE_UNAVAILABLE, "stalled", message)
    }

    fn server(status: StatusCode, code: &'static str, message: impl Into<Box<str>>) -> Self {
        Self::new(status, "server_error", code, message)
    }

    fn of_error(error: &Error) -> Self {
        match error {
            Error::BadInput {
                field: "model",
                limit,
                value,
            } => Self::no_model(limit.clone(), value.clone()),
            Error::BadInput {
                field,
                limit,
                value,
            } => Self {
                param: Some((*field).into()),
                limit: Some(limit.as_str().into()),
                value: Some(value.as_str().into()),
                ..Self::invalid(StatusCode::BAD_REQUEST, "invalid_value", error.to_string())
            },
            Error::Capacity { limit, needed, .. } => Self {
                limit: Some(limit.as_str().into()),
                value: Some(needed.as_str().into()),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    "overloaded",
                    error.to_string(),
                )
            },
            Error::Cancelled => {
                let status = StatusCode::from_u16(CLIENT_CLOSED);
                let status = status.unwrap_or(StatusCode::BAD_REQUEST);
                Self::invalid(status, "cancelled", error.to_string())
            }
            Error::DeadlineExceeded => {
                Self::server(StatusCode::GATEWAY_TIMEOUT, "timeout", error.to_string())
            }
            Error::Unsupported { .. } => Self::server(
                StatusCode::NOT_IMPLEMENTED,
                "unsupported",
                error.to_string(),
            ),
            Error::GroupLost(_) | Error::WorkerLost { .. } => Self::server(
                StatusCode::SERVICE_UNAVAILABLE,
                "worker_lost",
                "the worker was lost",
            ),
            // The same tokens would come of it anywhere else.
            Error::NotFinite { .. } => Self::server(
                StatusCode::INTERNAL_SERVER_ERROR,
                "not_finite",
                error.to_string(),
            ),
            Error::Checkpoint { .. } | Error::Io { .. } => Self::server(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal_error",
                "internal error",
            ),
        }
    }

    /// Whether the same request can succeed later: OpenAI's clients are told.
    fn retryable(&self) -> bool {
        matches!(
            self.status,
            StatusCode::REQUEST_TIMEOUT
                | StatusCode::TOO_MANY_REQUESTS
                | StatusCode::SERVICE_UNAVAILABLE
        )
    }

    /// What it is counted as.
    pub fn counted(&self) -> Code {
        match self.status {
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            StatusCode::NOT_FOUND => Code::NotFound,
            status if status.is_client_error() => Code::InvalidArgument,
            _ => Code::Internal,
        }
    }

    /// The body of the answer, or the data of a stream's last event.
    pub fn envelope(self, context: &Context) -> Envelope {
        Envelope {
            error: Body {
                message: self.message,
                r#type: self.kind,
                param: self.param,
                code: self.code,
                limit: self.limit,
                value: self.value,
                request_id: context.request_id().to_owned(),
                trace_id: context.trace_id(),
            },
        }
    }

    /// The answer.
    pub fn answer(self, context: &Context) -> Response {
        let status = self.status;
        let headers = self.headers();
        (status, headers, Json(self.envelope(context))).into_response()
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let retry = if self.retryable() { "true" } else { "false" };
        headers.insert("x-should-retry", HeaderValue::from_static(retry));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after {
            // Whole seconds are all that HTTP has; OpenAI's clients know the finer one too.
            let seconds = wait.as_millis().div_ceil(1000) as u64;
            headers.insert(RETRY_AFTER, seconds.into());
            headers.insert("retry-after-ms", (wait.as_millis() as u64).into());
        }
        headers
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        match failure {
            Failure::Job(error) => Self::of_error(&error),
            Failure::Busy { error, retry_after } => Self {
                retry_after: Some(retry_after),
                ..Self::of_error(&error)
            },
            Failure::Unauthenticated(reason) => Self::new(
                StatusCode::UNAUTHORIZED,
                "authentication_error",
                "invalid_api_key",
                reason,
            ),
            Failure::Forbidden(reason) => Self::new(
                StatusCode::FORBIDDEN,
                "permission_error",
                "forbidden",
                reason,
            ),
            Failure::Limited {
                limit,
                value,
                retry_after,
                ..
            } => Self {
                limit: Some(limit.into()),
                value: Some(value.into()),
                retry_after: Some(retry_after),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    "rate_limit_exceeded",
                    message,
                )
            },
            Failure::Unavailable(reason) => {
                Self::server(StatusCode::SERVICE_UNAVAILABLE, "unavailable", reason)
            }
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::of_error(&error)
    }
}

/// Its body is written by [`super::context::layer`], which knows the request.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
