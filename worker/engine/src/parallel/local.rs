//! A collective between threads of one process.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::Collective;
use crate::{Error, Result, ops::Device};

/// How long a rank waits for the others before it gives the group up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
struct Exchange {
    generation: u64,
    deposits: Vec<Option<Arc<[f32]>>>,
    gathered: Vec<Arc<[f32]>>,
    lost: bool,
}

#[derive(Debug)]
struct Shared {
    exchange: Mutex<Exchange>,
    changed: Condvar,
}

impl Shared {
    /// A panicking rank drops its [`LocalCollective`], which marks the group lost; the data behind
    /// the lock is valid all the same.
    fn lock(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One rank's end of a group of threads. Dropping any end ends the group for all.
#[derive(Debug)]
pub struct LocalCollective {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
}

/// The ends of a new group, by rank.
pub fn local_group(size: usize) -> Vec<LocalCollective> {
    let exchange = Exchange {
        deposits: vec![None; size],
        ..Exchange::default()
    };
    let shared = Arc::new(Shared {
        exchange: Mutex::new(exchange),
        changed: Condvar::new(),
    });
    (0..size)
        .map(|rank| LocalCollective {
            rank,
            size,
            shared: shared.clone(),
        })
        .collect()
}

impl LocalCollective {
    fn exchange(&self, mine: Arc<[f32]>) -> Result<Vec<Arc<[f32]>>> {
        let mut exchange = self.shared.lock();
        let generation = exchange.generation;
        exchange.deposits[self.rank] = Some(mine);
        if exchange.deposits.iter().all(Option::is_some) {
            exchange.gathered = exchange
                .deposits
                .iter_mut()
                .filter_map(Option::take)
                .collect();
            exchange.generation += 1;
            self.shared.changed.notify_all();
        }
        let overdue = Instant::now() + DEADLINE;
        while exchange.generation == generation {
            let left = overdue.saturating_duration_since(Instant::now());
            if exchange.lost || left.is_zero() {
                exchange.lost = true;
                self.shared.changed.notify_all();
                return Err(Error::GroupLost(format!(
                    "rank {} waited in vain",
                    self.rank
                )));
            }
            let (woken, _) = self
                .shared
                .changed
                .wait_timeout(exchange, left)
                .unwrap_or_else(PoisonError::into_inner);
            exchange = woken;
        }
        Ok(exchange.gathered.clone())
    }
}

impl<D: Device> Collective<D> for LocalCollective {
    fn size(&self) -> usize {
        self.size
    }

    fn gather(
        &mut self,
        device: &D,
        mine: &D::Buffer,
        len: usize,
        all: &mut D::Buffer,
    ) -> Result<()> {
        let gathered = self.exchange(device.read(mine, len)?.into())?;
        device.write(&gathered.concat(), all)
    }

    fn check(&mut self) -> Result<()> {
        match self.shared.lock().lost {
            true => Err(Error::GroupLost("a rank has left".into())),
            false => Ok(()),
        }
    }
}

impl Drop for LocalCollective {
    fn drop(&mut self) {
        self.shared.lock().lost = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathers_in_rank_order_again_and_again() {
        let gathered: Vec<Vec<f32>> = std::thread::scope(|scope| {
            let run = |end: LocalCollective| {
                scope.spawn(move || {
                    let mut last = vec![];
                    for round in 0..200 {
                        let mine = (end.rank * 1000 + round) as f32;
                        let all = end
                            .exchange(Arc::from([mine]))
                            .expect("all ranks are there");
                        last = all.iter().map(|part| part[0]).collect();
                    }
                    last
                })
            };
            let threads: Vec<_> = local_group(4).into_iter().map(run).collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .collect()
        });
        assert!(
            gathered
                .iter()
                .all(|all| all == &[199.0, 1199.0, 2199.0, 3199.0])
        );
    }

    #[test]
    fn a_lost_rank_frees_the_others() {
        let mut ends = local_group(2);
        let gone = ends.pop();
        let waiting = ends.pop().expect("two ends");
        let waiter = std::thread::spawn(move || waiting.exchange(Arc::from([1.0])));
        drop(gone);
        let result = waiter.join().expect("no panic");
        assert!(matches!(result, Err(Error::GroupLost(_))), "{result:?}");
    }
}
