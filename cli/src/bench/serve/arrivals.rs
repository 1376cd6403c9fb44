//! When requests begin.

use std::time::Duration;

use crate::bench::mix::mix;

/// The load that is put on a server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// So many requests at once: the next begins when one ends.
    Concurrency(usize),
    /// So many requests a second, whether earlier ones have ended or not, as a Poisson process.
    Rate(f64),
}

/// Moments from the start at which `requests` arrive at `rate` a second, as a Poisson process that
/// follows from `seed`.
pub fn poisson(rate: f64, seed: u64, requests: usize) -> Vec<Duration> {
    let gap = |index: usize| {
        // 53 bits, never 0 or 1.
        let uniform = ((mix(seed ^ mix(index as u64)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -uniform.ln() / rate
    };
    let moments = (0..requests).scan(0.0, |now, index| {
        let moment = *now;
        *now += gap(index);
        Some(Duration::from_secs_f64(moment))
    });
    moments.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let arrivals = poisson(4.0, 7, 20_001);
        assert_eq!(arrivals[0], Duration::ZERO);
        let gaps: Vec<f64> = arrivals
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.25).abs() < 0.01, "{mean}");
        assert!((variance.sqrt() - 0.25).abs() < 0.01, "{variance}");
        assert_eq!(poisson(4.0, 7, 3), arrivals[..3]);
        assert_ne!(poisson(4.0, 8, 3), arrivals[..3]);
    }
}
