//! A backbone group: the ranks that run steps together.

pub mod rank;
pub mod threads;

pub use rank::{Rank, StepOutput};
pub use threads::{Connection, GroupConfig, ThreadGroup};
