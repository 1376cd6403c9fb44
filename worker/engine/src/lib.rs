//! The engine of xomni: everything between a checkpoint on disk and tokens or pixels.
//!
//! Data flows through the folders in this order: [`checkpoint`] reads files into host tensors,
//! [`text`] turns prompts into token ids, [`schedule`] turns requests into steps of rows,
//! [`model`] runs them over the operations of [`ops`] (split across ranks by [`parallel`]),
//! [`sampling`] draws tokens, [`picture`] holds pixels, and
//! [`decode`] puts the picture models together; [`measure`] times a backbone on a device.
//! No network, no async runtime.

pub mod checkpoint;
pub mod decode;
pub mod error;
mod files;
pub mod group;
pub mod measure;
mod memory;
pub mod model;
pub mod ops;
pub mod parallel;
pub mod picture;
pub mod sampling;
pub mod schedule;
pub mod text;

pub use error::{Error, Result};
