//! Pictures: sizing and resampling of input, 8-bit output and PNG.

pub mod preprocess;
pub mod resample;
