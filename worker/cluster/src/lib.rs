//! What the processes of a cluster know of each other: [`record`]s in etcd, kept under leases,
//! watched by whoever routes.
//!
//! Losing etcd is not losing the cluster. [`Membership`] keeps what was last seen, a
//! [`Registration`] comes back under a fresh lease, and nothing here ends a process.

mod backoff;
mod cluster;
mod epoch;
mod error;
mod etcd;
mod membership;
mod mirror;
pub mod record;
mod registration;
mod watch;

pub use cluster::Cluster;
pub use error::ClusterError;
pub use membership::{Membership, Standing};
pub use registration::Registration;
