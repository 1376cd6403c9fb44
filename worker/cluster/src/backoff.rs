//! How long to wait before the next try.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// Doubles the wait from 50 ms to a second: etcd is back soon or not for a while.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// Waits; longer than last time.
    pub(crate) async fn wait(&mut self) {
        let now = self.next;
        self.next = (now * 2).min(LONGEST);
        tokio::time::sleep(now).await;
    }
}
