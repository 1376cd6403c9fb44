//! What the measurement found.

use std::fmt;

use serde::Serialize;

use crate::bench::distribution::Distribution;

/// The figures, all of runs in which every stream was complete, in order and of the right bytes.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Streams at once.
    pub streams: usize,
    /// Frames a second that each was to have.
    pub rate: f64,
    /// Frames a second of all streams, as sent while all of them ran.
    pub frames_per_second: f64,
    /// Connections of clients.
    pub connections: usize,
    /// Backbone groups.
    pub groups: usize,
    /// Bytes of all pictures that were checked.
    pub picture_bytes: usize,
    /// From the sending of a frame by a worker to its arrival at the client, in milliseconds.
    pub latency_ms: Distribution,
    /// The same without a coordinator: what the load generator takes of it.
    pub without_coordinator_ms: Distribution,
    /// What the coordinator's process used while all streams ran.
    pub coordinator: Cost,
}

/// What a process used.
#[derive(Debug, Serialize)]
pub struct Cost {
    /// Cores.
    pub cores: f64,
    /// Cores for 1,000 streams.
    pub cores_per_1000_streams: f64,
    /// CPU time of a frame, in microseconds.
    pub microseconds_per_frame: f64,
    /// Resident memory before the first stream, in MiB.
    pub idle_mib: f64,
    /// Resident memory while all streams ran, in MiB.
    pub running_mib: f64,
    /// What 1,000 streams add to it, in MiB.
    pub mib_per_1000_streams: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            streams,
            rate,
            frames_per_second,
            connections,
            groups,
            picture_bytes,
            ..
        } = self;
        writeln!(
            f,
            "{streams} streams at {rate} frames/s over {connections} connections and {groups} groups: \
             {frames_per_second:.0} frames/s"
        )?;
        writeln!(
            f,
            "every stream complete, in order, {picture_bytes} bytes of pictures right\n"
        )?;
        let columns = ["p50", "p90", "p99", "max"].map(|name| format!("{name:>10}"));
        writeln!(f, "{:<28}{}", "frame latency, ms", columns.concat())?;
        writeln!(f, "{:<28}{}", "through the coordinator", self.latency_ms)?;
        writeln!(f, "{:<28}{}\n", "without it", self.without_coordinator_ms)?;
        let cost = &self.coordinator;
        writeln!(f, "coordinator")?;
        writeln!(
            f,
            "{:<28}{:>10.2}  ({:.2} per 1,000 streams, {:.0} µs per frame)",
            "cores", cost.cores, cost.cores_per_1000_streams, cost.microseconds_per_frame
        )?;
        write!(
            f,
            "{:<28}{:>10.1}  ({:.1} idle, {:.1} more per 1,000 streams)",
            "memory, MiB", cost.running_mib, cost.idle_mib, cost.mib_per_1000_streams
        )
    }
}
