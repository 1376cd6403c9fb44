//! Measures a backbone on a device: whether it is right, what a step takes and what of it each kernel and
//! the exchanges between ranks, and whole images.
//!
//! Everything but exchanges by themselves runs through a [`crate::group::ThreadGroup`], as in a worker.

mod device;
mod exchange;
mod images;
mod kernels;
mod subject;
mod validation;

pub use device::Measured;
pub use exchange::Exchanges;
pub use images::{ImageLoad, ImageRun};
pub use kernels::KernelTime;
pub use subject::{Decoding, Subject, published};
pub use validation::{Validation, validate};
