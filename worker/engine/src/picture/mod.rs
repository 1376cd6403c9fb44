//! Pictures: reading, sizing and resampling of input, 8-bit output and PNG.

pub mod png;
pub mod preprocess;
pub mod read;
pub mod resample;
mod rgb;

pub use rgb::Picture;
