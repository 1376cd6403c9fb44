//! Ports of the loopback that nobody uses.

use std::net::{Ipv4Addr, TcpListener};

use crate::error::CliError;

/// Ports that are free until this is dropped, each another.
#[derive(Debug, Default)]
pub struct FreePorts(Vec<TcpListener>);

impl FreePorts {
    /// One more.
    pub fn next(&mut self) -> Result<u16, CliError> {
        let io = |error| CliError::file("127.0.0.1:0")(error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io)?;
        let port = listener.local_addr().map_err(io)?.port();
        self.0.push(listener);
        Ok(port)
    }
}

/// A port that is free now.
pub fn free_port() -> Result<u16, CliError> {
    FreePorts::default().next()
}
