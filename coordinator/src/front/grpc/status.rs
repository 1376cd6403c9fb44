//! Failures as gRPC statuses.

use std::time::Duration;

use tonic::Status;
use xomni_worker::convert::{
    Refusal,
    status::{RETRY_AFTER, refused},
};

use crate::front::failure::Failure;

/// The status of a failure.
pub fn status(failure: Failure) -> Status {
    match failure {
        Failure::Busy { error, retry_after } => refused(error.into(), retry_after),
        Failure::Unauthenticated(reason) => Status::unauthenticated(reason),
        Failure::Forbidden(reason) => Status::permission_denied(reason),
        Failure::Limited { retry_after, .. } => {
            let mut status = Status::resource_exhausted(failure.to_string());
            let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
            status.metadata_mut().insert(RETRY_AFTER, millis.into());
            status
        }
        Failure::Job(error) => refused(error.into(), Duration::ZERO),
        Failure::Unavailable(reason) => refused(Refusal::Unavailable(reason), Duration::ZERO),
    }
}
