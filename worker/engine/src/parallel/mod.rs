//! Tensor parallelism: how weights are split across ranks, and how partial results meet.
//!
//! The number of ranks never changes a result. Row-parallel products always split their input
//! into [`CHUNKS`] chunks, each summed alone; the chunk sums are added as one balanced binary
//! tree, of which every rank computes a subtree.

pub mod abort;
pub mod collective;
pub mod layout;
pub mod linear;
pub mod local;
pub mod net;
pub mod vocabulary;

pub use abort::Abort;
pub use collective::{Collective, Meeting, RowProduct, SumRoom};
pub use layout::{CHUNKS, HeadLayout, Shard};
pub use local::{LocalCollective, local_group};
pub use net::{NetCollective, NetConfig};
