//! The one line that a process writes to its standard output.

use std::{fmt::Display, io::Write, net::SocketAddr};

/// Says that a process answers, where it is called, and where its metrics are.
pub fn announce(role: &str, address: impl Display, metrics: Option<SocketAddr>) {
    let metrics = metrics.map(|address| format!(", metrics at http://{address}/metrics"));
    // Who closed the output does not want to know.
    let _ = writeln!(
        std::io::stdout(),
        "{role} ready at {address}{}",
        metrics.unwrap_or_default()
    );
}
