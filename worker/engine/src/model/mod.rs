//! The models, each in one file, in forward order, over the layers they share.

pub mod backbone;
pub mod clip;
pub mod conv;
pub mod dense;
pub mod embedding;
pub mod flow;
pub mod flux;
pub mod norm;
pub mod siglip;
pub mod t5;
pub mod vae;
pub mod vq;
