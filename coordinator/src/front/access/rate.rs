//! How often something may happen: the generic cell rate algorithm, without IO.

use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// So many a minute, all of them at once or spread over it.
#[derive(Debug)]
pub struct Rate {
    per_minute: u32,
    /// When all that was taken would be, had it been spread evenly.
    arrival: Option<Instant>,
}

impl Rate {
    /// At least one a minute.
    pub fn new(per_minute: u32) -> Self {
        Self {
            per_minute: per_minute.max(1),
            arrival: None,
        }
    }

    /// How many a minute.
    pub fn per_minute(&self) -> u32 {
        self.per_minute
    }

    /// Takes one.
    ///
    /// # Errors
    /// The time after which one can be taken, if not now.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let interval = MINUTE / self.per_minute;
        let arrival = self.arrival.map_or(now, |arrival| arrival.max(now));
        let ahead = (arrival + interval).duration_since(now);
        if ahead > MINUTE {
            return Err(ahead - MINUTE);
        }
        self.arrival = Some(arrival + interval);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_is_taken_and_the_next_waits() {
        let mut rate = Rate::new(6);
        let now = Instant::now();
        for _ in 0..6 {
            rate.take(now).expect("within the rate");
        }
        assert_eq!(rate.take(now), Err(Duration::from_secs(10)));
    }

    proptest! {
        #[test]
        fn whoever_waits_as_told_is_taken(
            per_minute in 1u32..1000, waits in prop::collection::vec(0u64..5000, 1..200),
        ) {
            let mut rate = Rate::new(per_minute);
            let mut now = Instant::now();
            for wait in waits {
                now += Duration::from_millis(wait);
                if let Err(told) = rate.take(now) {
                    prop_assert!(told > Duration::ZERO && told <= MINUTE);
                    let early = now + told - Duration::from_nanos(1);
                    prop_assert!(rate.take(early).is_err());
                    now += told;
                    prop_assert_eq!(rate.take(now), Ok(()));
                }
            }
        }

        #[test]
        fn no_minute_sees_twice_the_rate(
            per_minute in 1u32..100, waits in prop::collection::vec(0u64..2000, 1..300),
        ) {
            let mut rate = Rate::new(per_minute);
            let mut now = Instant::now();
            let mut taken = vec![];
            for wait in waits {
                now += Duration::from_millis(wait);
                if rate.take(now).is_ok() {
                    taken.push(now);
                }
            }
            for begin in &taken {
                let within = taken.iter().filter(|at| *at >= begin && **at < *begin + MINUTE);
                prop_assert!(within.count() <= 2 * per_minute as usize);
            }
        }
    }
}
