//! Failures as gRPC statuses.

use std::time::Duration;

use tonic::Status;
use xomni_worker::convert::{Refusal, status::refused};

use crate::front::failure::Failure;

/// The status of a failure.
pub fn status(failure: Failure) -> Status {
    match failure {
        Failure::Busy { error, retry_after } => refused(error.into(), retry_after),
        Failure::Job(error) => refused(error.into(), Duration::ZERO),
        Failure::Unavailable(reason) => refused(Refusal::Unavailable(reason), Duration::ZERO),
    }
}
