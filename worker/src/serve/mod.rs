//! The gRPC services of a worker, over whatever implements the traits of [`crate::api`].

mod backbone;
mod decoder;

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

pub use backbone::{BackboneService, backbone_service};
pub use decoder::{DecoderService, decoder_service};
use tokio_stream::Stream;
use tonic::{Status, metadata::MetadataMap};
use tracing::Span;
use xomni_engine::{Error, Result};

use crate::{
    convert::{Refusal, status},
    telemetry,
};

/// What a server streams.
type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The status that ends the call of `span`. What the caller is not told is logged, here only.
fn failed(span: &Span, error: &Error) -> Status {
    mark(span, error);
    status::failed(error)
}

/// As [`failed`], for a call that was not taken.
fn refused(span: &Span, refusal: Refusal, retry_after: Duration) -> Status {
    match &refusal {
        Refusal::Job(error) => mark(span, error),
        Refusal::Precondition { .. } | Refusal::Unavailable(_) => telemetry::fail(span, &refusal),
    }
    status::refused(refusal, retry_after)
}

fn mark(span: &Span, error: &Error) {
    span.in_scope(|| match error {
        Error::GroupLost(_) | Error::WorkerLost { .. } => tracing::warn!(%error, "job lost"),
        Error::Checkpoint { .. } | Error::Io { .. } => tracing::error!(%error, "job failed"),
        Error::BadInput { .. }
        | Error::Cancelled
        | Error::Capacity { .. }
        | Error::DeadlineExceeded
        | Error::NotFinite { .. }
        | Error::Unsupported { .. } => tracing::debug!(%error, "job ended"),
    });
    telemetry::fail(span, error);
}

/// When a call's client gives up, as its `grpc-timeout` says.
///
/// # Errors
/// [`Error::BadInput`] for one that is not as gRPC defines it.
pub fn deadline(metadata: &MetadataMap) -> Result<Option<Instant>> {
    let Some(given) = metadata.get("grpc-timeout") else {
        return Ok(None);
    };
    let timeout = given.to_str().ok().and_then(timeout).ok_or_else(|| {
        let limit = "must be 1 to 8 digits and one of HMSmun";
        Error::bad_input("grpc-timeout", limit, format!("{given:?}"))
    })?;
    Ok(Instant::now().checked_add(timeout))
}

/// A duration as gRPC writes it: up to eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(timeout("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(timeout("15000000u"), Some(Duration::from_secs(15)));
        for wrong in [
            "",
            "S",
            "1",
            "1s",
            "-1S",
            "+1S",
            "1.5S",
            "123456789S",
            "1é",
            "é",
        ] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }
}
