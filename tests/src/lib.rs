//! What the tests of the workspace share: golden fixtures and how results are compared with them.

pub mod golden;
