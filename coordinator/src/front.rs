//! What clients reach.

pub mod call;
pub mod cluster;
pub mod convert;
pub mod grpc;
