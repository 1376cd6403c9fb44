//! The HTTP API as a client sees it.

mod service;
