//! xomni coordinator.
