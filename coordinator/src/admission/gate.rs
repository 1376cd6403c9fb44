//! Waiting for admission.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use xomni_engine::{Error, Result};

use super::{Admission, Bounds, Demand, Ticket, Verdict, throughput::Throughput};
use crate::metrics::Metrics;

/// A shared [`Admission`]; clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    bounds: Bounds,
    metrics: Metrics,
}

struct State {
    admission: Admission,
    throughput: Throughput,
    /// Who waits for each ticket in the queue.
    waiters: HashMap<Ticket, oneshot::Sender<Permit>>,
}

impl Gate {
    /// An open gate.
    pub fn new(bounds: Bounds, metrics: Metrics) -> Self {
        let state = State {
            admission: Admission::new(bounds),
            throughput: Throughput::default(),
            waiters: HashMap::new(),
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                bounds,
                metrics,
            }),
        }
    }

    /// Takes a request or has it wait.
    ///
    /// # Errors
    /// [`Error::Capacity`] if the queue is full.
    pub fn enter(&self, demand: Demand) -> Result<Waiting> {
        let mut state = self.state();
        state.pass();
        let deadline = demand.deadline;
        let cost = demand.cost;
        let (permit, waiter) = oneshot::channel();
        let ticket = match state.admission.offer(demand) {
            Verdict::Start(ticket) => {
                // The receiver is still here.
                let _ = permit.send(self.permit(ticket));
                ticket
            }
            Verdict::Wait(ticket) => {
                state.waiters.insert(ticket, permit);
                ticket
            }
            Verdict::Refuse => {
                return Err(Error::Capacity {
                    what: "request queue",
                    limit: format!("{} requests", self.shared.bounds.queue),
                    needed: format!("one more, of {cost} tokens"),
                    retry_after: None,
                });
            }
        };
        self.observe(&state);
        Ok(Waiting {
            gate: self.clone(),
            ticket,
            waiter,
            deadline,
        })
    }

    /// When a refused request should come again: when all that is known now should be done, as in
    /// [`Admission::retry_after`], at the rate that can be counted on from what was seen of late
    /// or else from the rate `told` by the workers.
    pub fn retry_after(&self, told: f64) -> Duration {
        let mut state = self.state();
        state.pass();
        state.admission.retry_after(state.throughput.rate(told))
    }

    /// Requests that run and requests that wait.
    pub fn load(&self) -> (usize, usize) {
        self.state().admission.load()
    }

    /// Image tokens of all requests that run or wait.
    pub fn backlog(&self) -> u64 {
        self.state().admission.backlog()
    }

    /// How many may run and wait.
    pub fn bounds(&self) -> Bounds {
        self.shared.bounds
    }

    fn permit(&self, ticket: Ticket) -> Permit {
        Permit {
            gate: self.clone(),
            ticket,
        }
    }

    /// Changes the state, then starts whatever can start.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut started = vec![];
        {
            let mut state = self.state();
            state.pass();
            change(&mut state);
            while let Some(ticket) = state.admission.start_next(Instant::now()) {
                started.push((self.permit(ticket), state.waiters.remove(&ticket)));
            }
            self.observe(&state);
        }
        for (permit, waiter) in started {
            // The permit of one that has just stopped waiting comes back and starts another.
            drop(waiter.map(|waiter| waiter.send(permit)));
        }
    }

    fn observe(&self, state: &State) {
        let (running, waiting) = state.admission.load();
        self.shared.metrics.in_flight.set(running as i64);
        self.shared.metrics.queued.set(waiting as i64);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is whole even if its thread then panics.
        let lock = self.shared.state.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Time has passed since the last change.
    fn pass(&mut self) {
        let running = self.admission.running_cost();
        self.throughput.pass(running, Instant::now());
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let admission = &self.state().admission;
        f.debug_tuple("Gate").field(admission).finish()
    }
}

/// A request that is not refused. Dropping it takes it back.
#[derive(Debug)]
pub struct Waiting {
    gate: Gate,
    ticket: Ticket,
    waiter: oneshot::Receiver<Permit>,
    deadline: Option<Instant>,
}

impl Waiting {
    /// Waits until the request can run.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] if its deadline passes first.
    pub async fn permit(mut self) -> Result<Permit> {
        let permit = match self.deadline {
            Some(at) => tokio::time::timeout_at(at.into(), &mut self.waiter).await,
            None => Ok((&mut self.waiter).await),
        };
        // A sender is dropped only with an expired request.
        permit
            .map_err(|_| Error::DeadlineExceeded)?
            .map_err(|_| Error::DeadlineExceeded)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let ticket = self.ticket;
        self.gate.change(|state| {
            state.admission.leave(ticket);
            state.waiters.remove(&ticket);
        });
    }
}

/// A place among the requests that run, free again when this is dropped.
#[derive(Debug)]
pub struct Permit {
    gate: Gate,
    ticket: Ticket,
}

impl Permit {
    /// The request is done.
    pub fn complete(self) {
        let mut state = self.gate.state();
        state.pass();
        if let Some(cost) = state.admission.cost(self.ticket) {
            state.throughput.complete(cost);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let ticket = self.ticket;
        self.gate.change(|state| {
            state.admission.finish(ticket);
        });
    }
}
