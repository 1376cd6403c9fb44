//! The one line that a process writes to its standard output.

use std::{fmt::Display, io::Write};

/// Says that a process answers, where it is called, and where its metrics are.
pub fn announce(role: &str, address: impl Display, metrics: Option<String>) {
    let metrics = metrics.map(|url| format!(", metrics at {url}"));
    // Who closed the output does not want to know.
    let _ = writeln!(
        std::io::stdout(),
        "{role} ready at {address}{}",
        metrics.unwrap_or_default()
    );
}
