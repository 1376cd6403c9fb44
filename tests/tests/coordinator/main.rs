//! The coordinator over workers in this process, by direct calls and over gRPC.

mod chat;
mod front;
mod model;
mod pools;
