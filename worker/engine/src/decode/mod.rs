//! Pictures from tokens, and tokens from pictures: the models of both directions put together.

mod decoder;
mod denoise;
mod encoder;
pub mod latents;
mod setup;
mod source;
mod spec;

pub use decoder::{PictureDecoder, PromptEncoding};
pub use denoise::Denoise;
pub use encoder::PictureEncoder;
pub use setup::{DecoderSetup, DecoderWeights};
pub use source::WeightsSource;
pub use spec::{DecodeSpec, MAX_STEPS, Progress};
