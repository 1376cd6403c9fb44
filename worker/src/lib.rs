//! xomni worker.
