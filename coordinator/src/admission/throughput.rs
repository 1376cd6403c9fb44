//! How fast requests are surely worked off, without IO: what RFC 6298 makes of round trips, so that
//! TCP's retransmissions are rarely too early, of the time that image tokens take.
//!
//! A sample is the time per token of a round, that is of as much work as ran at once; as for TCP
//! there is one a round, so that requests which end together don't count as slow and fast in turn.
//! The time that can be counted on is the smoothed one and four times its smoothed deviation.

use std::time::Instant;

/// Weight of a sample in the smoothed time and in its deviation.
const GAINS: (f64, f64) = (1.0 / 8.0, 1.0 / 4.0);
/// Deviations that the time which can be counted on is above the smoothed one.
const MARGIN: f64 = 4.0;

/// Work that was done of late, and the round that is not over.
#[derive(Debug, Default)]
pub struct Throughput {
    pace: Option<Pace>,
    round: Round,
    /// Up to when all that is known.
    known: Option<Instant>,
}

/// Seconds that an image token takes.
#[derive(Debug, Clone, Copy)]
struct Pace {
    smoothed: f64,
    deviation: f64,
}

/// Work since a request was done that made the one before full, or since something ran again.
#[derive(Debug, Default)]
struct Round {
    seconds: f64,
    /// Image tokens of the requests done.
    done: u64,
    /// Image tokens of all requests that ran at once, at most.
    running: u64,
}

impl Pace {
    /// After the first sample, of which nothing tells how much others will differ.
    fn first(sample: f64) -> Self {
        Self {
            smoothed: sample,
            deviation: sample / 2.0,
        }
    }

    fn then(self, sample: f64) -> Self {
        let error = sample - self.smoothed;
        Self {
            smoothed: self.smoothed + GAINS.0 * error,
            deviation: self.deviation + GAINS.1 * (error.abs() - self.deviation),
        }
    }

    /// Few tokens take longer.
    fn sure(self) -> f64 {
        self.smoothed + MARGIN * self.deviation
    }
}

impl Throughput {
    /// It is `now`, and until now requests of so many image tokens were `running`.
    pub fn pass(&mut self, running: u64, now: Instant) {
        let before = self.known.replace(now).unwrap_or(now);
        if running == 0 {
            self.round = Round::default();
            return;
        }
        self.round.seconds += now.saturating_duration_since(before).as_secs_f64();
        self.round.running = self.round.running.max(running);
    }

    /// A running request of so many image tokens is done.
    pub fn complete(&mut self, cost: u64) {
        self.round.done += cost;
        if self.round.done < self.round.running || self.round.done == 0 {
            return;
        }
        let Round { seconds, done, .. } = std::mem::take(&mut self.round);
        let sample = seconds / done as f64;
        let pace = self.pace.map(|pace| pace.then(sample));
        self.pace = Some(pace.unwrap_or(Pace::first(sample)));
    }

    /// Image tokens a second that can be counted on; 0 if nothing is known. Before a round was
    /// full that is what the rate `told` by the workers makes likely; no more than what the round
    /// that is not over can still come to.
    pub fn rate(&self, told: f64) -> f64 {
        let told = (told > 0.0).then(|| Pace::first(1.0 / told));
        let Some(pace) = self.pace.or(told) else {
            return 0.0;
        };
        let round = self.round.seconds / self.round.running.max(1) as f64;
        1.0 / pace.sure().max(round)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Works on requests of `cost` tokens, `at_once` of them, for a time each that `seconds` says.
    fn work(
        throughput: &mut Throughput,
        mut now: Instant,
        (cost, at_once): (u64, u64),
        seconds: impl IntoIterator<Item = f64>,
    ) -> Instant {
        throughput.pass(0, now);
        for seconds in seconds {
            now += Duration::from_secs_f64(seconds);
            for left in (1..=at_once).rev() {
                throughput.pass(cost * left, now);
                throughput.complete(cost);
            }
        }
        now
    }

    fn close(rate: f64, expected: f64) -> bool {
        (rate / expected - 1.0).abs() < 0.01
    }

    /// Numbers from 0 to 1 as SplitMix64 draws them.
    fn random() -> impl Iterator<Item = f64> {
        let mut state = 7u64;
        std::iter::repeat_with(move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = state;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        })
    }

    #[test]
    fn only_time_with_work_counts() {
        let mut throughput = Throughput::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        throughput.pass(0, at(0));
        throughput.pass(0, at(100));
        assert_eq!(throughput.rate(0.0), 0.0);
        throughput.pass(50, at(110));
        throughput.complete(50);
        throughput.pass(0, at(200));
        throughput.pass(50, at(210));
        throughput.complete(50);
        // Twice the same: the deviation is three quarters of the first.
        assert!(close(throughput.rate(0.0), 5.0 / 2.5));
    }

    #[test]
    fn a_steady_rate_is_counted_on_whoever_runs_together() {
        for at_once in [1, 2, 7, 256] {
            let mut throughput = Throughput::default();
            let steady = std::iter::repeat_n(2.0, 40);
            work(&mut throughput, Instant::now(), (100, at_once), steady);
            let rate = throughput.rate(0.0);
            assert!(close(rate, 50.0 * at_once as f64), "{at_once}: {rate}");
        }
    }

    #[test]
    fn what_workers_tell_holds_until_it_is_measured() {
        let mut throughput = Throughput::default();
        assert!(close(throughput.rate(30.0), 10.0));
        work(&mut throughput, Instant::now(), (100, 1), [1.0]);
        assert!(close(throughput.rate(1e9), 100.0 / 3.0));
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let mut throughput = Throughput::default();
        let now = work(&mut throughput, Instant::now(), (100, 1), [1.0; 60]);
        work(&mut throughput, now, (100, 1), [10.0; 60]);
        assert!(close(throughput.rate(0.0), 10.0));
    }

    #[test]
    fn a_standstill_is_noticed_before_it_ends() {
        let mut throughput = Throughput::default();
        let now = work(&mut throughput, Instant::now(), (100, 1), [1.0; 40]);
        throughput.pass(100, now + Duration::from_secs(20));
        assert!(close(throughput.rate(0.0), 5.0));
        throughput.pass(0, now + Duration::from_secs(21));
        assert!(close(throughput.rate(0.0), 100.0), "it was given up");
    }

    /// However much times vary, who comes again once as much work should be done is rarely early.
    /// Of the smoothed time alone that would hold for every second or third.
    #[test]
    fn few_requests_take_longer_than_can_be_counted_on() {
        let even = |u: f64| 0.5 + u;
        let exponential = |u: f64| -(1.0 - u).ln();
        let twofold = |u: f64| if u < 0.8 { 1.0 } else { 2.0 };
        let distributions: [(&str, &dyn Fn(f64) -> f64); 3] = [
            ("even", &even),
            ("exponential", &exponential),
            ("twofold", &twofold),
        ];
        for (name, seconds) in distributions {
            let mut throughput = Throughput::default();
            let (mut now, mut longer, mut told) = (Instant::now(), 0, 0.0);
            for seconds in random().map(seconds).take(2000) {
                if told > 0.0 {
                    longer += usize::from(seconds > told);
                }
                now = work(&mut throughput, now, (100, 1), [seconds]);
                told = 100.0 / throughput.rate(0.0);
            }
            assert!(longer <= 100, "{name}: {longer} of 2000");
        }
    }
}
