//! The coordinator over workers in this process, by direct calls and over gRPC.

mod front;
mod model;
mod pools;
