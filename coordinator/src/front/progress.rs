//! Whether the work that there is goes on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// When any request last got on. Clones are the same.
#[derive(Debug, Clone)]
pub struct Progress {
    start: Instant,
    /// Milliseconds after `start`.
    last: Arc<AtomicU64>,
    /// Longest that work may stand still.
    patience: Duration,
}

impl Progress {
    /// Work may stand still for so long.
    pub fn new(patience: Duration) -> Self {
        Self {
            start: Instant::now(),
            last: Arc::default(),
            patience,
        }
    }

    /// A request began, or got on.
    pub fn advance(&self) {
        let now = self.start.elapsed().as_millis() as u64;
        self.last.fetch_max(now, Ordering::Relaxed);
    }

    /// For how long no request has got on, if that is too long for any of those that run.
    pub fn stalled(&self, running: usize) -> Option<Duration> {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        let still = self.start.elapsed().saturating_sub(last);
        (running > 0 && still > self.patience).then_some(still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_that_stands_still_stalls() {
        let hasty = Progress::new(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(2));
        assert!(hasty.stalled(1).is_some());
        assert_eq!(hasty.stalled(0), None);
        let patient = Progress::new(Duration::from_secs(3600));
        patient.advance();
        assert_eq!(patient.stalled(1), None);
    }
}
