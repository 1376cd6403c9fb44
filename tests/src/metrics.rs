//! The metrics of a process, as Prometheus reads them.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// A process that is stopped answers nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// The values of one reading, by name with labels, such as `xomni_retries_total{stage="decoder"}`.
#[derive(Debug, Clone)]
pub struct Metrics(HashMap<String, f64>);

impl Metrics {
    /// Reads `http://host:port/metrics`.
    ///
    /// # Errors
    /// What the system says of a process that does not answer.
    pub fn read(url: &str) -> io::Result<Self> {
        let (address, path) = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(|| io::Error::other(format!("no address: {url}")))?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request =
            format!("GET /{path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, text) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        if !head.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other(head.to_owned()));
        }
        Ok(Self::parse(text))
    }

    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(samples.collect())
    }

    /// A sample; 0 for a counter with labels that was never counted.
    ///
    /// # Panics
    /// If there is no metric of the name before the labels.
    pub fn get(&self, sample: &str) -> f64 {
        if let Some(value) = self.0.get(sample) {
            return *value;
        }
        assert!(sample.contains('{'), "no {sample} in {self:?}");
        0.0
    }
}
