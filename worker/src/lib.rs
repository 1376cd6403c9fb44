//! The services around the engine: a backbone that draws tokens for many requests at once, and a
//! decoder that develops them into pictures. [`api`] is what callers see, in one process or over
//! a network; [`backbone`] and [`decoder`] run the engine on threads of this process, and [`local`]
//! starts both from a checkpoint. [`serve`] offers them over gRPC and [`client`] calls them there;
//! [`convert`] is the border between the two. [`group`] makes a
//! backbone of several processes.

pub mod api;
pub mod backbone;
pub mod client;
pub mod convert;
pub mod decoder;
pub mod fingerprint;
pub mod group;
pub mod local;
pub mod process;
pub mod roles;
pub mod serve;
pub mod telemetry;
