//! What the tests of the workspace share: golden fixtures, how results are compared with them, and
//! runs of a fixture's backbone.

pub mod backbone;
pub mod golden;
pub mod layout;
