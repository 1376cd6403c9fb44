//! The `xomni` command line.
fn main() {}
