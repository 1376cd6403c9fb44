//! The part of a run in which all its streams draw.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::streams::Progress;
use crate::{bench::usage::Usage, error::CliError};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// What a process did while all streams drew.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Cores that it used.
    pub cores: f64,
    /// Memory that it had at the end, in bytes.
    pub resident: u64,
    /// Frames a second that came through it.
    pub frames_per_second: f64,
}

impl Window {
    /// Follows a run from the first frame of its last stream to the last frame of its first.
    ///
    /// # Errors
    /// [`CliError::Wrong`] if its streams never draw all at once.
    pub async fn observe(
        process: u32,
        streams: usize,
        progress: &Progress,
    ) -> Result<Self, CliError> {
        let read = |counter: &std::sync::atomic::AtomicUsize| counter.load(Ordering::Relaxed);
        while read(&progress.begun) < streams {
            tokio::time::sleep(LOOK).await;
        }
        let (began, before, first) = (Instant::now(), Usage::of(process)?, read(&progress.frames));
        if read(&progress.ended) > 0 {
            let reason = "the streams never drew all at once: give them more seconds";
            return Err(CliError::Wrong(reason.into()));
        }
        while read(&progress.ended) == 0 {
            tokio::time::sleep(LOOK).await;
        }
        let (took, after) = (began.elapsed(), Usage::of(process)?);
        let frames = read(&progress.frames) - first;
        Ok(Self {
            cores: after.cores_since(&before),
            resident: after.resident,
            frames_per_second: frames as f64 / took.as_secs_f64(),
        })
    }
}
