//! What the processes of a cluster know of each other: [`record`]s in etcd, kept under leases,
//! watched by whoever routes.

pub mod record;
