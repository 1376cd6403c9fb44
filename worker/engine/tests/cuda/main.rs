//! The CUDA backend against the CPU backend, against golden data, and bit for bit against itself. Needs a GPU. The
//! binary can be carried to a machine without Rust; `XOMNI_GOLDEN` then names the fixture `tests/golden/xomni-tiny`.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests are not in tests by themselves"
)]

mod attention;
mod backbone;
mod golden;
mod groups;
mod products;
mod rows;
mod sampling;
mod support;
