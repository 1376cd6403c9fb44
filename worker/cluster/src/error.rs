//! What can go wrong between a process and etcd.

use std::time::Duration;

use tonic::Code;

/// Why something could not be asked of the cluster, or written to it.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A name that cannot be part of a key.
    #[error("a cluster's name is neither empty nor has it a '/': {name:?}")]
    Name {
        /// The name given.
        name: String,
    },
    /// No address of etcd, or one that is none.
    #[error("endpoints of etcd {endpoints:?}: {reason}")]
    Endpoints {
        /// The addresses given.
        endpoints: Vec<String>,
        /// What is wrong.
        reason: String,
    },
    /// The thread that talks with etcd cannot be started.
    #[error("thread for etcd: {0}")]
    Thread(#[source] std::io::Error),
    /// etcd did not answer in time. Whether it did what was asked is not known.
    #[error("etcd did not answer within {0:?}")]
    Timeout(Duration),
    /// etcd cannot be reached, or refuses.
    #[error("etcd: {0}")]
    Etcd(#[source] Box<etcd_client::Error>),
    /// Others took each epoch first.
    #[error("the epoch of group {group:?} was taken by others {attempts} times in a row")]
    Contended {
        /// The group.
        group: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// A record that is not what stands under such a key.
    #[error("record {key:?}: {reason}")]
    Record {
        /// Its key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The system gives no random bytes.
    #[error("no random bytes for a secret: {0}")]
    Random(getrandom::Error),
}

impl ClusterError {
    /// Whether the same call may succeed later, with nothing else changed.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::Contended { .. } => true,
            Self::Etcd(error) => etcd_retryable(error),
            Self::Name { .. }
            | Self::Endpoints { .. }
            | Self::Thread(_)
            | Self::Record { .. }
            | Self::Random(_) => false,
        }
    }

    /// Whether etcd says that what was named (a lease) does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            Self::Etcd(error) => match error.as_ref() {
                etcd_client::Error::GRpcStatus(status) => status.code() == Code::NotFound,
                // What the client makes of a keep-alive that is answered with no time to live.
                etcd_client::Error::LeaseKeepAliveError(_) => true,
                _ => false,
            },
            _ => false,
        }
    }
}

impl From<etcd_client::Error> for ClusterError {
    fn from(error: etcd_client::Error) -> Self {
        Self::Etcd(Box::new(error))
    }
}

fn etcd_retryable(error: &etcd_client::Error) -> bool {
    use etcd_client::Error;
    match error {
        Error::IoError(_)
        | Error::TransportError(_)
        | Error::WatchError(_)
        | Error::LeaseKeepAliveError(_)
        | Error::ElectError(_)
        | Error::EndpointError(_) => true,
        Error::GRpcStatus(status) => match status.code() {
            Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable => true,
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
            | Code::Unauthenticated => false,
        },
        Error::InvalidArgs(_)
        | Error::InvalidUri(_)
        | Error::Utf8Error(_)
        | Error::InvalidMetadataValue(_)
        | Error::EndpointsNotManaged
        | Error::Internal(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code) -> ClusterError {
        etcd_client::Error::GRpcStatus(tonic::Status::new(code, "")).into()
    }

    #[test]
    fn an_absent_etcd_is_worth_another_try_and_a_refusal_is_not() {
        assert!(status(Code::Unavailable).retryable());
        assert!(!status(Code::PermissionDenied).retryable());
        assert!(status(Code::NotFound).is_not_found());
        assert!(!status(Code::Unavailable).is_not_found());
    }
}
