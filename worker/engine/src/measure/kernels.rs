//! What the kernels of a step take.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Decoding, Measured, Subject};
use crate::Result;

/// Runs of the step, of which medians are taken.
const RUNS: usize = 5;

/// What all launches of a kernel in a step take together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelTime {
    /// Its name.
    pub name: String,
    /// Launches in a step.
    pub launches: usize,
    /// Milliseconds of all of them.
    pub milliseconds: f64,
}

impl<O: Measured> Subject<O> {
    /// The kernels of a step of the first rank, the longest first. Each runs alone, so that their sum is more than the
    /// step takes; an exchange includes the wait for other ranks.
    ///
    /// # Errors
    /// As [`Subject::decode`].
    pub fn kernels(&self, decoding: &mut Decoding) -> Result<Vec<KernelTime>> {
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            let mut step = || self.run(self.decode_step(decoding)).map(drop);
            runs.push(self.devices[0].kernels(&mut step)?);
        }
        Ok(by_kernel(&runs))
    }
}

/// The medians of each launch, summed by kernel.
fn by_kernel(runs: &[Vec<(String, f32)>]) -> Vec<KernelTime> {
    let mut sums: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    let launches = runs.iter().map(Vec::len).min().unwrap_or(0);
    for launch in 0..launches {
        let mut times: Vec<f32> = runs.iter().map(|run| run[launch].1).collect();
        times.sort_by(f32::total_cmp);
        let (count, sum) = sums.entry(&runs[0][launch].0).or_default();
        *count += 1;
        *sum += f64::from(times[times.len() / 2]);
    }
    let time = |(name, (launches, milliseconds)): (&str, (usize, f64))| KernelTime {
        name: name.to_owned(),
        launches,
        milliseconds,
    };
    let mut times: Vec<KernelTime> = sums.into_iter().map(time).collect();
    times.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_are_summed_by_kernel() {
        let run = |norm: f32, linear: f32| {
            ["norm", "linear", "norm"]
                .map(|name| (name.to_owned(), if name == "norm" { norm } else { linear }))
                .to_vec()
        };
        let times = by_kernel(&[run(1.0, 5.0), run(1.0, 90.0), run(8.0, 4.0)]);
        let of = |time: &KernelTime| (time.name.clone(), time.launches, time.milliseconds);
        let want = [("linear".to_owned(), 1, 5.0), ("norm".to_owned(), 2, 2.0)];
        assert_eq!(times.iter().map(of).collect::<Vec<_>>(), want);
        assert_eq!(by_kernel(&[vec![]]), []);
    }
}
