//! How fast requests are worked off, without IO.

use std::time::Instant;

/// Seconds of work after which what was seen before counts half.
const MEMORY: f64 = 60.0;

/// Work done and the time it took, of late.
#[derive(Debug, Default)]
pub struct Throughput {
    /// Image tokens.
    done: f64,
    /// Seconds in which something ran.
    busy: f64,
    /// Up to when that is known.
    known: Option<Instant>,
}

impl Throughput {
    /// It is `now`, and until now something was `running` or not.
    pub fn pass(&mut self, running: bool, now: Instant) {
        if let Some(before) = self.known.replace(now).filter(|_| running) {
            self.busy += now.saturating_duration_since(before).as_secs_f64();
        }
    }

    /// A request of so many image tokens is done.
    pub fn complete(&mut self, cost: u64) {
        self.done += cost as f64;
        if self.busy > MEMORY {
            self.done /= 2.0;
            self.busy /= 2.0;
        }
    }

    /// Image tokens a second; `None` before the first request is done.
    pub fn rate(&self) -> Option<f64> {
        (self.done > 0.0 && self.busy > 0.0).then(|| self.done / self.busy)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_time_with_work_counts() {
        let mut throughput = Throughput::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        throughput.pass(false, at(0));
        throughput.pass(false, at(100));
        assert_eq!(throughput.rate(), None);
        throughput.pass(true, at(110));
        throughput.complete(50);
        assert_eq!(throughput.rate(), Some(5.0));
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let mut throughput = Throughput::default();
        let start = Instant::now();
        throughput.pass(false, start);
        let mut now = start;
        for rate in [100, 10] {
            for _ in 0..60 {
                now += Duration::from_secs(10);
                throughput.pass(true, now);
                throughput.complete(10 * rate);
            }
        }
        let rate = throughput.rate().expect("known");
        assert!((9.9..11.0).contains(&rate), "{rate}");
    }
}
