//! Which requests run, which wait and which are refused. [`Admission`] decides, without IO;
//! [`Gate`] makes callers wait for it.
//!
//! Tenants share fairly by start-time fair queueing (Goyal, Vin and Cheng, 1996): each pays for
//! what it starts with the cost of it, and the one that has paid least goes first. Priorities
//! order a tenant's own requests; they take nothing from other tenants.

mod gate;
#[cfg(test)]
mod tests;
mod throughput;

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

pub use gate::{Gate, Permit, Waiting};

/// Shortest and longest wait that a refused client is told.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));

/// How much a coordinator takes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Requests that run at once.
    pub in_flight: usize,
    /// Requests that wait.
    pub queue: usize,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Who pays.
    pub tenant: String,
    /// Lower runs first among the tenant's own.
    pub priority: i32,
    /// Image tokens.
    pub cost: u64,
    /// When it is of no use any more.
    pub deadline: Option<Instant>,
}

/// Names a request within an [`Admission`].
pub type Ticket = u64;

/// What becomes of a request at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It runs now.
    Start(Ticket),
    /// It waits.
    Wait(Ticket),
    /// There is no room.
    Refuse,
}

/// Decides which requests run.
#[derive(Debug)]
pub struct Admission {
    bounds: Bounds,
    next: Ticket,
    /// Cost of each request that runs.
    running: HashMap<Ticket, u64>,
    /// Where each request that waits is.
    waiting: HashMap<Ticket, (String, Place)>,
    tenants: HashMap<String, Tenant>,
    /// Start tag of the request that was started last.
    virtual_time: u64,
}

/// A place in a tenant's queue: priority, then arrival.
type Place = (i32, Ticket);

#[derive(Debug, Default)]
struct Tenant {
    /// Start tag of its next request: what it has paid.
    tag: u64,
    queue: BTreeMap<Place, (u64, Option<Instant>)>,
}

impl Admission {
    /// Nothing runs and nothing waits.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            next: 0,
            running: HashMap::new(),
            waiting: HashMap::new(),
            tenants: HashMap::new(),
            virtual_time: 0,
        }
    }

    /// Requests that run and requests that wait.
    pub fn load(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Image tokens of all requests that run or wait.
    pub fn backlog(&self) -> u64 {
        let queues = self.tenants.values().map(|tenant| &tenant.queue);
        let waiting: u64 = queues.flatten().map(|(_, (cost, _))| cost).sum();
        waiting + self.running_cost()
    }

    /// Image tokens of all requests that run.
    pub fn running_cost(&self) -> u64 {
        self.running.values().sum()
    }

    /// Image tokens of a request that runs.
    pub fn cost(&self, ticket: Ticket) -> Option<u64> {
        self.running.get(&ticket).copied()
    }

    /// When all that is known now should be done, at `rate` image tokens a second; a guess where
    /// the rate is 0, not known.
    pub fn retry_after(&self, rate: f64) -> Duration {
        let (least, most) = RETRY_AFTER;
        let seconds = if rate > 0.0 {
            self.backlog() as f64 / rate
        } else {
            1.0
        };
        // Rounded up, so that what is told is true; too large a number becomes the largest.
        let nanos = (seconds * 1e9).ceil() as u64;
        Duration::from_nanos(nanos).clamp(least, most)
    }

    /// Takes, queues or refuses a request.
    pub fn offer(&mut self, demand: Demand) -> Verdict {
        let ticket = self.next;
        if self.running.len() < self.bounds.in_flight && self.waiting.is_empty() {
            self.next += 1;
            self.running.insert(ticket, demand.cost);
            return Verdict::Start(ticket);
        }
        if self.waiting.len() >= self.bounds.queue {
            return Verdict::Refuse;
        }
        self.next += 1;
        let place = (demand.priority, ticket);
        let tenant = self.tenants.entry(demand.tenant.clone()).or_default();
        if tenant.queue.is_empty() {
            // What was not used while nothing was asked for is not saved up.
            tenant.tag = tenant.tag.max(self.virtual_time);
        }
        tenant.queue.insert(place, (demand.cost, demand.deadline));
        self.waiting.insert(ticket, (demand.tenant, place));
        Verdict::Wait(ticket)
    }

    /// Starts the request that is next, if there is room and one waits. Those whose deadline has
    /// passed are dropped instead.
    pub fn start_next(&mut self, now: Instant) -> Option<Ticket> {
        while self.running.len() < self.bounds.in_flight {
            let queued = |(name, tenant): (&String, &Tenant)| {
                let (place, (cost, deadline)) = tenant.queue.first_key_value()?;
                Some((tenant.tag, place.1, name.clone(), *place, *cost, *deadline))
            };
            let next = self.tenants.iter().filter_map(queued).min();
            let (tag, ticket, name, place, cost, deadline) = next?;
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.leave(ticket);
                continue;
            }
            self.virtual_time = tag;
            if let Some(tenant) = self.tenants.get_mut(&name) {
                tenant.tag += cost.max(1);
                tenant.queue.remove(&place);
            }
            self.waiting.remove(&ticket);
            self.forget();
            self.running.insert(ticket, cost);
            return Some(ticket);
        }
        None
    }

    /// Takes back a request that waits; `false` if it does not.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        let Some((name, place)) = self.waiting.remove(&ticket) else {
            return false;
        };
        if let Some(tenant) = self.tenants.get_mut(&name) {
            tenant.queue.remove(&place);
        }
        self.forget();
        true
    }

    /// Ends a request that runs; `false` if it does not.
    pub fn finish(&mut self, ticket: Ticket) -> bool {
        self.running.remove(&ticket).is_some()
    }

    /// Forgets tenants that have nothing queued and owe nothing; once nothing waits at all, all.
    fn forget(&mut self) {
        if self.waiting.is_empty() {
            self.virtual_time = 0;
            self.tenants.clear();
        }
        let now = self.virtual_time;
        self.tenants
            .retain(|_, tenant| !tenant.queue.is_empty() || tenant.tag > now);
    }
}
