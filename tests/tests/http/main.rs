//! The HTTP API as a client sees it.

mod bad_input;
mod chat;
mod idempotency;
mod images;
mod keys;
mod openapi;
mod overload;
mod service;
mod stream;
