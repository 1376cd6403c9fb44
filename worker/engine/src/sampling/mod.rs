//! Drawing tokens and noise. Randomness is a function of (seed, domain, image index, step,
//! candidate), never a state: any draw can be repeated anywhere.

pub mod draw;
pub mod filter;
pub mod noise;
pub mod params;
pub mod philox;

pub use draw::{Draw, Drawn, draw};
pub use params::SamplingParams;
