//! What the server did under load.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::request::{Outcome, Seen};
use crate::bench::distribution::Distribution;

/// The figures. Errors count as requests and as nothing else.
#[derive(Debug, Serialize, PartialEq)]
pub struct Report {
    /// Requests sent.
    pub requests: usize,
    /// Those that ended in all their pictures.
    pub succeeded: usize,
    /// Those that did not, by the kind of error.
    pub errors: BTreeMap<String, usize>,
    /// From the first request to the last answer, in seconds.
    pub seconds: f64,
    /// From a request to each of its pictures, in seconds.
    pub image_seconds: Distribution,
    /// From a request to its start.
    pub queue_seconds: Distribution,
    /// From a request to its first token.
    pub first_token_seconds: Distribution,
    /// From a request to its first preview.
    pub first_partial_seconds: Distribution,
    /// Image tokens a second, all requests together.
    pub tokens_per_second: f64,
    /// Pictures a second, all requests together.
    pub images_per_second: f64,
    /// The pictures that were there within a limit.
    pub goodput: Option<Goodput>,
}

/// What came in time.
#[derive(Debug, Serialize, PartialEq)]
pub struct Goodput {
    /// Longest that a picture may take, in seconds.
    pub limit_seconds: f64,
    /// Pictures a second that took no longer.
    pub images_per_second: f64,
    /// Their share of all pictures that were asked for.
    pub share: f64,
}

impl Report {
    /// Of these requests of `n` pictures each, which took so many seconds together.
    pub fn of(outcomes: &[Outcome], n: usize, seconds: f64, limit: Option<f64>) -> Self {
        let good = outcomes.iter().filter(|outcome| outcome.error.is_none());
        let good: Vec<&Seen> = good.map(|outcome| &outcome.seen).collect();
        let mut errors = BTreeMap::new();
        for error in outcomes.iter().filter_map(|outcome| outcome.error.as_ref()) {
            *errors.entry(error.clone()).or_default() += 1;
        }
        let pictures: Vec<f64> = good.iter().flat_map(|seen| seen.pictures.clone()).collect();
        let each = |moment: fn(&Seen) -> Option<f64>| {
            Distribution::of(good.iter().filter_map(|seen| moment(seen)).collect())
        };
        let tokens: usize = good.iter().map(|seen| seen.tokens).sum();
        let rate = |count: usize| count as f64 / seconds.max(1e-9);
        let goodput = limit.map(|limit_seconds| {
            let in_time = pictures
                .iter()
                .filter(|took| **took <= limit_seconds)
                .count();
            Goodput {
                limit_seconds,
                images_per_second: rate(in_time),
                share: in_time as f64 / (outcomes.len() * n).max(1) as f64,
            }
        });
        Self {
            requests: outcomes.len(),
            succeeded: good.len(),
            errors,
            seconds,
            queue_seconds: each(|seen| seen.started),
            first_token_seconds: each(|seen| seen.first_token),
            first_partial_seconds: each(|seen| seen.first_partial),
            tokens_per_second: rate(tokens),
            images_per_second: rate(pictures.len()),
            image_seconds: Distribution::of(pictures),
            goodput,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            requests,
            succeeded,
            seconds,
            ..
        } = self;
        writeln!(f, "{succeeded} of {requests} requests in {seconds:.1} s\n")?;
        let columns = ["p50", "p90", "p99", "max"].map(|name| format!("{name:>10}"));
        writeln!(f, "{:<16}{}", "seconds", columns.concat())?;
        for (name, times) in [
            ("picture", &self.image_seconds),
            ("queue", &self.queue_seconds),
            ("first token", &self.first_token_seconds),
            ("first preview", &self.first_partial_seconds),
        ] {
            if times.count > 0 {
                writeln!(f, "{name:<16}{times}")?;
            }
        }
        writeln!(f, "\n{:<16}{:>10.1}", "tokens/s", self.tokens_per_second)?;
        write!(f, "{:<16}{:>10.2}", "pictures/s", self.images_per_second)?;
        if let Some(goodput) = &self.goodput {
            write!(
                f,
                "\n{:<16}{:>10.2}  within {} s, {:.0} % of those asked for",
                "goodput",
                goodput.images_per_second,
                goodput.limit_seconds,
                100.0 * goodput.share
            )?;
        }
        for (kind, count) in &self.errors {
            write!(f, "\n{count:>6} × {kind}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_and_lower_the_goodput() {
        let drawn = |took: f64| Outcome {
            seen: Seen {
                started: Some(0.1),
                pictures: vec![took, took],
                tokens: 50,
                ..Seen::default()
            },
            error: None,
        };
        let failed = || Outcome {
            seen: Seen {
                pictures: vec![0.1],
                tokens: 25,
                ..Seen::default()
            },
            error: Some("429 rate_limit_exceeded".into()),
        };
        let outcomes = [drawn(1.0), drawn(3.0), failed(), failed()];
        let report = Report::of(&outcomes, 2, 10.0, Some(2.0));
        assert_eq!((report.requests, report.succeeded), (4, 2));
        assert_eq!(report.errors["429 rate_limit_exceeded"], 2);
        assert_eq!(report.image_seconds.count, 4);
        assert_eq!(report.first_token_seconds.count, 0);
        assert_eq!(
            (report.images_per_second, report.tokens_per_second),
            (0.4, 10.0)
        );
        let goodput = report.goodput.as_ref().expect("a limit");
        assert_eq!((goodput.images_per_second, goodput.share), (0.2, 0.25));
        let table = report.to_string();
        assert!(table.contains("2 × 429 rate_limit_exceeded"), "{table}");
    }
}
