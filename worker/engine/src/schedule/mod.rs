//! From requests to steps: admission with exact reservation, continuous batching, chunked prefill.
//!
//! A step is a list of rows; a row is (sequence, position, token, whether to sample). Prefill is
//! many rows of one sequence, decode one row of each, replay after a failure rows whose tokens are
//! known, guidance a pair of rows whose logits are combined. Nothing here does IO or keeps time.

pub mod event;
pub mod pool;
pub mod request;
mod running;
pub mod scheduler;
pub mod step;

#[cfg(test)]
mod tests;

pub use event::{AbortReason, Event, FinishReason};
pub use pool::{Lease, Pool};
pub use request::{Mode, OutputSpec, Request, RequestId};
pub use scheduler::{Scheduler, SchedulerConfig};
pub use step::{Admission, DrawSetup, Row, Sample, Slot, Step, TokenSource};
