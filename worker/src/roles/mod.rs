//! What a worker process can be: its arguments, and its life from loading to the last answer.

pub mod arguments;
pub mod backbone;
pub mod decoder;
pub mod device;
