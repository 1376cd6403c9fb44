//! Errors as gRPC statuses and back: the one place that decides what a caller is told.

use std::time::Duration;

use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};
use xomni_engine::Error;

/// Metadata of a refusal for want of room: when to ask again, in milliseconds.
pub const RETRY_AFTER: &str = "retry-after-ms";
/// Metadata of bad input and of missing room: field or resource, limit, value or need.
const DETAILS: [&str; 3] = ["xomni-what-bin", "xomni-limit-bin", "xomni-given-bin"];

/// Why a service does not take a request.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request itself.
    #[error(transparent)]
    Job(#[from] Error),
    /// It asks for something else than what is served here.
    #[error("{what}: {wanted} is asked for, {served} is served")]
    Precondition {
        /// What differs.
        what: &'static str,
        /// What the request asks for (shortened where it is long).
        wanted: String,
        /// What is served.
        served: String,
    },
    /// Nothing is served here now.
    #[error("{0}")]
    Unavailable(&'static str),
}

/// The status of a refusal. With [`Error::Capacity`] goes when to come back: `retry_after`, unless
/// the error knows better.
pub fn refused(refusal: Refusal, retry_after: Duration) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Job(
            ref error @ Error::Capacity {
                retry_after: known, ..
            },
        ) => {
            let mut status = failed(error);
            let wait = known.unwrap_or(retry_after);
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            status.metadata_mut().insert(RETRY_AFTER, millis.into());
            status
        }
        Refusal::Job(error) => failed(&error),
        Refusal::Precondition { .. } => Status::failed_precondition(text),
        Refusal::Unavailable(_) => Status::unavailable(text),
    }
}

/// The status of an error. Of a lost worker, or a failure within this process, it says no more than
/// that: whoever consumes the error logs it.
pub fn failed(error: &Error) -> Status {
    match error {
        Error::BadInput {
            field,
            limit,
            value,
        } => detailed(Code::InvalidArgument, error, [field, limit, value]),
        Error::Capacity {
            what,
            limit,
            needed,
            ..
        } => detailed(Code::ResourceExhausted, error, [what, limit, needed]),
        Error::Cancelled => Status::cancelled(error.to_string()),
        Error::DeadlineExceeded => Status::deadline_exceeded(error.to_string()),
        Error::Unsupported { .. } => Status::unimplemented(error.to_string()),
        Error::GroupLost(_) | Error::WorkerLost { .. } => {
            Status::unavailable("the worker was lost")
        }
        // The same tokens would come of it anywhere else.
        Error::NotFinite { .. } => Status::data_loss(error.to_string()),
        Error::Checkpoint { .. } | Error::Io { .. } => Status::internal("internal error"),
    }
}

/// The error that a status tells of. A connection that breaks, a worker that is not the one asked
/// for, and whatever else may go better elsewhere is a lost worker.
pub fn error(status: &Status) -> Error {
    let broken = std::error::Error::source(status).is_some();
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => {
            let [what, limit, value] = details(status.metadata());
            match what.as_deref().and_then(|what| known(&FIELDS, what)) {
                Some(field) => Error::BadInput {
                    field,
                    limit: limit.unwrap_or_default(),
                    value: value.unwrap_or_default(),
                },
                None => Error::bad_input("request", public(status), "another"),
            }
        }
        Code::ResourceExhausted => {
            let [what, limit, needed] = details(status.metadata());
            Error::Capacity {
                what: what
                    .as_deref()
                    .and_then(|what| known(&RESOURCES, what))
                    .unwrap_or("worker"),
                limit: limit.unwrap_or_else(|| public(status)),
                needed: needed.unwrap_or_else(|| "more".into()),
                retry_after: retry_after(status.metadata()),
            }
        }
        Code::Cancelled if !broken => Error::Cancelled,
        Code::DeadlineExceeded => Error::DeadlineExceeded,
        Code::Unimplemented => Error::Unsupported {
            what: "request".into(),
            reason: public(status),
        },
        Code::DataLoss => Error::Unsupported {
            what: "result".into(),
            reason: public(status),
        },
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::Unauthenticated => {
            Error::worker_lost("worker", format!("{:?}: {}", status.code(), public(status)))
        }
    }
}

/// When a worker without room says to come back.
fn retry_after(metadata: &MetadataMap) -> Option<Duration> {
    let millis = metadata.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// Fields of requests, whose names are static in [`Error::BadInput`].
const FIELDS: [&str; 32] = [
    "adapter",
    "chunk",
    "codes",
    "document",
    "finished",
    "forced",
    "forced prefix",
    "grid",
    "grpc-timeout",
    "guidance_scale",
    "height",
    "image",
    "input",
    "latents",
    "max_tokens",
    "messages",
    "min_p",
    "mode",
    "model",
    "n",
    "negative_prompt",
    "num_inference_steps",
    "outputs",
    "prompt",
    "request_id",
    "sampling",
    "steps",
    "stop_ids",
    "temperature",
    "tokens",
    "top_p",
    "width",
];

/// Resources, whose names are static in [`Error::Capacity`].
const RESOURCES: [&str; 3] = ["decoder queue", "encoder queue", "queue"];

fn known<const N: usize>(names: &[&'static str; N], name: &str) -> Option<&'static str> {
    names.iter().copied().find(|known| *known == name)
}

fn detailed(code: Code, error: &Error, parts: [&str; 3]) -> Status {
    let mut metadata = MetadataMap::new();
    for (key, part) in DETAILS.into_iter().zip(parts) {
        metadata.insert_bin(key, MetadataValue::from_bytes(part.as_bytes()));
    }
    Status::with_metadata(code, error.to_string(), metadata)
}

fn details(metadata: &MetadataMap) -> [Option<String>; 3] {
    DETAILS.map(|key| {
        let bytes = metadata.get_bin(key)?.to_bytes().ok()?;
        Some(shorten(&String::from_utf8_lossy(&bytes)))
    })
}

/// A status's text, which another process wrote: printable, and no longer than a line or two.
fn public(status: &Status) -> String {
    shorten(status.message())
}

fn shorten(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(300)
        .collect()
}
