//! When each frame of a run was sent.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// The moments that the frames of a run's streams were sent at. Written by the workers and read by
/// the clients, which are one process and so have one clock.
#[derive(Debug)]
pub struct Stamps {
    start: Instant,
    frames: usize,
    /// Nanoseconds from the start, frame by frame and stream by stream; 0: not sent yet.
    sent: Vec<AtomicU64>,
}

impl Stamps {
    /// For so many streams of so many frames each.
    pub fn new(streams: usize, frames: usize) -> Self {
        Self {
            start: Instant::now(),
            frames,
            sent: (0..streams * frames).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Notes that a frame is sent now. Frames of other runs are not noted.
    pub fn send(&self, stream: u64, frame: usize) {
        if let Some(sent) = self.sent.get(self.place(stream, frame)) {
            sent.store(self.now(), Ordering::Release);
        }
    }

    /// Milliseconds since a frame was sent; `None` if it was not.
    pub fn age(&self, stream: u64, frame: usize) -> Option<f64> {
        let sent = self.sent.get(self.place(stream, frame))?;
        let sent = sent.load(Ordering::Acquire);
        let age = self.now().saturating_sub(sent) as f64 / 1e6;
        (sent > 0).then_some(age)
    }

    fn place(&self, stream: u64, frame: usize) -> usize {
        let first = usize::try_from(stream)
            .unwrap_or(usize::MAX)
            .saturating_mul(self.frames);
        first.saturating_add(frame)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_has_an_age() {
        let stamps = Stamps::new(2, 3);
        stamps.send(1, 0);
        assert!(stamps.age(1, 0).is_some());
        assert_eq!(stamps.age(0, 2), None);
        stamps.send(2, 0);
        stamps.send(u64::MAX, 0);
        assert_eq!(stamps.age(2, 0), None);
    }
}
