use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds {
    in_flight: 2,
    queue: 5,
};

fn demand(tenant: &str, priority: i32, cost: u64) -> Demand {
    Demand {
        tenant: tenant.into(),
        priority,
        cost,
        deadline: None,
    }
}

/// Tickets in the order they start when each running one ends in turn.
fn drain(admission: &mut Admission, mut running: Vec<Ticket>) -> Vec<Ticket> {
    let mut order = vec![];
    while let Some(ticket) = running.pop() {
        assert!(admission.finish(ticket));
        while let Some(next) = admission.start_next(Instant::now()) {
            order.push(next);
            running.push(next);
        }
    }
    order
}

fn waiting(admission: &mut Admission, demand: Demand) -> Ticket {
    match admission.offer(demand) {
        Verdict::Wait(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

fn full(queue: usize) -> (Admission, Ticket) {
    let mut admission = Admission::new(Bounds {
        in_flight: 1,
        queue,
    });
    match admission.offer(demand("first", 0, 10)) {
        Verdict::Start(ticket) => (admission, ticket),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_quiet_tenant_does_not_wait_for_a_loud_one() {
    let (mut admission, first) = full(100);
    let loud: Vec<_> = (0..4)
        .map(|_| waiting(&mut admission, demand("loud", 0, 10)))
        .collect();
    let quiet: Vec<_> = (0..2)
        .map(|_| waiting(&mut admission, demand("quiet", 0, 10)))
        .collect();
    let order = drain(&mut admission, vec![first]);
    let expected = [loud[0], quiet[0], loud[1], quiet[1], loud[2], loud[3]];
    assert_eq!(order, expected);
}

#[test]
fn a_tenant_pays_by_the_token() {
    let (mut admission, first) = full(100);
    let large = [0; 2].map(|_| waiting(&mut admission, demand("large", 0, 30)));
    let small = [0; 4].map(|_| waiting(&mut admission, demand("small", 0, 10)));
    let order = drain(&mut admission, vec![first]);
    let [s0, s1, s2, s3] = small;
    assert_eq!(order, [large[0], s0, s1, s2, large[1], s3]);
}

#[test]
fn priorities_order_a_tenants_own_requests_only() {
    let (mut admission, first) = full(100);
    let late = waiting(&mut admission, demand("a", 5, 10));
    let soon = waiting(&mut admission, demand("a", -5, 10));
    let other = waiting(&mut admission, demand("b", 9, 10));
    assert_eq!(drain(&mut admission, vec![first]), [soon, other, late]);
}

#[test]
fn a_refused_client_is_told_when_the_backlog_is_done() {
    let (mut admission, _) = full(1);
    waiting(&mut admission, demand("a", 0, 90));
    assert_eq!(admission.offer(demand("a", 0, 1)), Verdict::Refuse);
    assert_eq!(admission.retry_after(20.0), Duration::from_secs(5));
    assert_eq!(admission.retry_after(1e-9), RETRY_AFTER.1);
    assert_eq!(admission.retry_after(1e9), RETRY_AFTER.0);
}

#[derive(Debug, Clone)]
enum Action {
    Offer(u8, i32, u64, Option<u64>),
    Finish(usize),
    Leave(usize),
    Wait(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let deadline = proptest::option::weighted(0.3, 0u64..10);
    prop_oneof![
        5 => (0u8..4, -1i32..2, 1u64..100, deadline)
            .prop_map(|(tenant, priority, cost, deadline)| {
                Action::Offer(tenant, priority, cost, deadline)
            }),
        4 => (0usize..8).prop_map(Action::Finish),
        1 => (0usize..8).prop_map(Action::Leave),
        1 => (0u64..5).prop_map(Action::Wait),
    ]
}

proptest! {
    /// Invariants: `permits are conserved`, `the bounds hold`, `one terminal state` for every
    /// request, `an expired request never starts`, and at the end nothing is left.
    #[test]
    fn random_histories(actions in proptest::collection::vec(action(), 1..150)) {
        let mut now = Instant::now();
        let mut admission = Admission::new(BOUNDS);
        let mut running: Vec<Ticket> = vec![];
        let mut waiting: BTreeMap<Ticket, Option<Instant>> = BTreeMap::new();
        let mut ended: Vec<Ticket> = vec![];
        for action in actions {
            match action {
                Action::Offer(tenant, priority, cost, deadline) => {
                    let deadline = deadline.map(|seconds| now + Duration::from_secs(seconds));
                    let demand = Demand {
                        deadline,
                        ..demand(&tenant.to_string(), priority, cost)
                    };
                    match admission.offer(demand) {
                        Verdict::Start(ticket) => running.push(ticket),
                        Verdict::Wait(ticket) => {
                            waiting.insert(ticket, deadline);
                        }
                        Verdict::Refuse => prop_assert_eq!(waiting.len(), BOUNDS.queue),
                    }
                }
                Action::Finish(index) if index < running.len() => {
                    let ticket = running.swap_remove(index);
                    prop_assert!(admission.finish(ticket));
                    ended.push(ticket);
                }
                Action::Leave(index) => {
                    let Some(&ticket) = waiting.keys().nth(index) else { continue };
                    waiting.remove(&ticket);
                    prop_assert!(admission.leave(ticket));
                    ended.push(ticket);
                }
                Action::Finish(_) => {}
                Action::Wait(seconds) => now += Duration::from_secs(seconds),
            }
            while let Some(ticket) = admission.start_next(now) {
                let deadline = waiting.remove(&ticket).expect("one terminal state");
                prop_assert!(deadline.is_none_or(|at| at > now), "an expired request never starts");
                running.push(ticket);
            }
            // Those it dropped have expired.
            waiting.retain(|ticket, deadline| {
                let kept = admission.waiting.contains_key(ticket);
                assert!(kept || deadline.is_some_and(|at| at <= now), "one terminal state");
                kept
            });
            prop_assert_eq!(admission.load(), (running.len(), waiting.len()), "permits are conserved");
            prop_assert!(running.len() <= BOUNDS.in_flight && waiting.len() <= BOUNDS.queue, "the bounds hold");
            prop_assert!(running.len() == BOUNDS.in_flight || waiting.is_empty(), "permits are conserved");
        }
        for ticket in &ended {
            prop_assert!(!admission.finish(*ticket) && !admission.leave(*ticket), "one terminal state");
        }
        for ticket in running {
            prop_assert!(admission.finish(ticket));
        }
        while let Some(ticket) = admission.start_next(now) {
            admission.finish(ticket);
        }
        prop_assert_eq!((admission.load(), admission.backlog()), ((0, 0), 0));
        prop_assert!(admission.tenants.is_empty());
    }

    /// Invariant `no tenant starves`: while two tenants wait, what each has been given differs by
    /// no more than their largest requests, however much either asks for.
    #[test]
    fn tenants_share_fairly(costs in proptest::collection::vec((0u8..3, 1u64..100), 1..200)) {
        let (mut admission, first) = full(usize::MAX);
        let mut tenants: BTreeMap<u8, (u64, u64, usize)> = BTreeMap::new();
        let mut demands: BTreeMap<Ticket, (u8, u64)> = BTreeMap::new();
        for (tenant, cost) in costs {
            demands.insert(waiting(&mut admission, demand(&tenant.to_string(), 0, cost)), (tenant, cost));
            let (_, largest, left) = tenants.entry(tenant).or_default();
            *largest = (*largest).max(cost);
            *left += 1;
        }
        let mut last = first;
        while admission.finish(last) && let Some(ticket) = admission.start_next(Instant::now()) {
            let (tenant, cost) = demands[&ticket];
            let (given, _, left) = tenants.get_mut(&tenant).expect("known");
            *given += cost;
            *left -= 1;
            let waiting: Vec<_> = tenants.values().filter(|(_, _, left)| *left > 0).collect();
            for (a, b) in waiting.iter().zip(waiting.iter().skip(1)) {
                prop_assert!(a.0.abs_diff(b.0) <= a.1 + b.1, "no tenant starves: {a:?} {b:?}");
            }
            last = ticket;
        }
    }
}

/// Requests that run at once share a known rate evenly.
struct Server {
    admission: Admission,
    /// Image tokens a second.
    rate: f64,
    /// Image tokens that are left of each request that runs.
    left: BTreeMap<Ticket, f64>,
    costs: BTreeMap<Ticket, f64>,
}

impl Server {
    fn offer(&mut self, cost: u64) -> bool {
        match self.admission.offer(demand("a", 0, cost)) {
            Verdict::Start(ticket) => self.left.insert(ticket, cost as f64),
            Verdict::Wait(ticket) => self.costs.insert(ticket, cost as f64),
            Verdict::Refuse => return false,
        };
        true
    }

    fn run(&mut self, mut seconds: f64) {
        while !self.left.is_empty() {
            let share = self.rate / self.left.len() as f64;
            let next = self.left.values().copied().fold(f64::INFINITY, f64::min) / share;
            let step = next.min(seconds);
            seconds -= step;
            for left in self.left.values_mut() {
                *left -= share * step;
            }
            let done: Vec<_> = self.left.iter().filter(|(_, left)| **left < 1e-9).collect();
            let done: Vec<_> = done.into_iter().map(|(ticket, _)| *ticket).collect();
            for ticket in done {
                self.left.remove(&ticket);
                assert!(self.admission.finish(ticket));
                while let Some(started) = self.admission.start_next(Instant::now()) {
                    self.left.insert(started, self.costs[&started]);
                }
            }
            if seconds <= 0.0 {
                return;
            }
        }
    }
}

proptest! {
    #[test]
    fn whoever_comes_again_when_told_is_taken(
        in_flight in 1usize..4, queue in 0usize..4, rate in 10u32..200,
        arrivals in prop::collection::vec((0u32..3000, 1u64..500), 1..40),
    ) {
        let mut server = Server {
            admission: Admission::new(Bounds { in_flight, queue }),
            rate: f64::from(rate),
            left: BTreeMap::new(),
            costs: BTreeMap::new(),
        };
        for (millis, cost) in arrivals {
            server.run(f64::from(millis) / 1000.0);
            if !server.offer(cost) {
                let told = server.admission.retry_after(server.rate);
                server.run(told.as_secs_f64());
                prop_assert!(server.offer(cost), "refused again after {told:?}");
            }
        }
    }
}
