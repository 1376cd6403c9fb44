//! Checkpoint directories as published: configuration files, safetensors, PyTorch `.pt` files.

mod archive;
pub mod config;
mod fields;
pub mod flux;
pub mod generation;
mod pickle;
mod random;
mod safetensors;
mod stored;
pub mod tensor;
#[cfg(test)]
mod testing;
mod torch_file;
pub mod weights;

pub use config::{BackboneConfig, XOmniConfig};
pub use flux::FluxConfig;
pub use generation::GenerationConfig;
pub use tensor::{DType, HostTensor};
pub use weights::Weights;
