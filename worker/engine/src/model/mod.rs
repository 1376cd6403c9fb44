//! The models, each in one file, in forward order.

pub mod backbone;
pub mod clip;
pub mod flow;
pub mod flux;
pub mod siglip;
pub mod t5;
pub mod vae;
pub mod vq;
