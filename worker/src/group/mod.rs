//! A backbone group of several processes: one life of it is an [`epoch`]. The process with rank 0
//! is its [`leader`], the others are [`follower`]s; a step crosses from one to the others as a
//! [`plan`]. [`serving`] is what the rest of a leading process sees.

pub mod epoch;
pub mod follower;
pub mod leader;
mod meter;
pub mod part;
pub mod plan;
mod runner;
pub mod serving;
pub mod sizes;
mod spans;
pub mod store;
mod wire;

pub use follower::Follower;
pub use leader::{Leader, ranks_service};
pub use meter::GroupMeter;
pub use part::Part;
pub use serving::GroupBackbone;
pub use store::{EpochStore, LoneStore};
