//! The coordinator: validates requests and takes each from a prompt to pictures.
//! [`pipeline`] is the page to read first.

pub mod pipeline;
pub mod request;
