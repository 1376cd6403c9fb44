//! What clients reach.

pub mod call;
pub mod convert;
pub mod grpc;
