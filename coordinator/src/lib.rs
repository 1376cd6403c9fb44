//! The coordinator: validates requests and takes each from a prompt to pictures.
//! [`pipeline`] is the page to read first.

pub mod admission;
pub mod config;
pub mod front;
pub mod metrics;
pub mod pipeline;
pub mod pool;
pub mod process;
pub mod request;
pub mod routing;
pub mod server;
pub mod status;
pub mod uploads;
