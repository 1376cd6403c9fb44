//! A connection to one rank, read and written under a deadline.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use super::lost;
use crate::{Error, Result};

/// Closed for both ends when it is dropped, whoever else holds the socket.
#[derive(Debug)]
pub(super) struct Link(TcpStream);

impl Link {
    /// Frames leave at once: a step waits for every one of them.
    pub fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true).map_err(lost)?;
        Ok(Self(stream))
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if the peer is gone or silent at `overdue`.
    pub fn read(&mut self, bytes: &mut [u8], overdue: Instant) -> Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            self.0
                .set_read_timeout(Some(left(overdue)?))
                .map_err(lost)?;
            match self.0.read(&mut bytes[filled..]) {
                Ok(0) => return Err(Error::GroupLost("a rank closed its connection".into())),
                Ok(count) => filled += count,
                Err(error) if is_temporary(&error) => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if the peer is gone or takes nothing until `overdue`.
    pub fn write(&mut self, bytes: &[u8], overdue: Instant) -> Result<()> {
        let mut sent = 0;
        while sent < bytes.len() {
            self.0
                .set_write_timeout(Some(left(overdue)?))
                .map_err(lost)?;
            match self.0.write(&bytes[sent..]) {
                Ok(0) => return Err(Error::GroupLost("a rank closed its connection".into())),
                Ok(count) => sent += count,
                Err(error) if is_temporary(&error) => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }
}

impl Link {
    /// Looks, without waiting, whether the peer is there. Between frames it says nothing.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if it has closed the connection, or sent what nobody awaits.
    pub fn check(&self) -> Result<()> {
        self.0.set_nonblocking(true).map_err(lost)?;
        let peeked = self.0.peek(&mut [0]);
        self.0.set_nonblocking(false).map_err(lost)?;
        match peeked {
            Ok(0) => Err(Error::GroupLost("a rank closed its connection".into())),
            Ok(_) => Err(Error::GroupLost("a rank is out of step".into())),
            Err(error) if is_temporary(&error) => Ok(()),
            Err(error) => Err(lost(error)),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The abort handle holds the socket too; a peer must not wait for that one.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// The time until `overdue`, which is not zero: that would mean no limit to the socket.
fn left(overdue: Instant) -> Result<Duration> {
    let left = overdue.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::GroupLost("a rank is overdue".into()));
    }
    Ok(left)
}

/// Whether to look at the clock and go on.
fn is_temporary(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
