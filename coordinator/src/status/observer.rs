//! Makes the status of a running coordinator.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use xomni_cluster::{
    Membership,
    record::{Role, WorkerRecord},
};
use xomni_proto::PROTOCOL_VERSION;

use super::{
    ClusterStatus, CoordinatorState, CoordinatorStatus, MembershipStatus, Outlook,
    sightings::Sightings, workers,
};
use crate::{
    admission::Gate,
    front::call::{Calls, Phase},
    routing::{Life, Need, Router, Stage},
};

/// Sees what a coordinator knows. Clones see the same.
#[derive(Clone)]
pub struct Observer {
    shared: Arc<Shared>,
}

struct Shared {
    model: String,
    started: Instant,
    gate: Gate,
    router: Router,
    calls: Calls,
    sightings: Mutex<Sightings>,
}

impl Observer {
    /// Observes the coordinator that these belong to, which starts now.
    pub fn new(model: &str, gate: &Gate, router: &Router, calls: &Calls) -> Self {
        let started = Instant::now();
        Self {
            shared: Arc::new(Shared {
                model: model.to_owned(),
                started,
                gate: gate.clone(),
                router: router.clone(),
                calls: calls.clone(),
                sightings: Mutex::new(Sightings::new(started)),
            }),
        }
    }

    /// Takes a new state of the membership.
    pub fn see(&self, membership: &Arc<Membership>) {
        self.sightings().see(membership, Instant::now());
    }

    /// How the cluster stands now.
    pub fn status(&self) -> ClusterStatus {
        let now = Instant::now();
        let sightings = self.sightings();
        let membership = sightings.membership();
        let (groups, decoders) = workers(&membership, |record| {
            let (takes_work, outstanding) = self.outlook(record);
            Outlook {
                since_seconds: sightings.stands_for(&record.id, now),
                takes_work,
                outstanding,
            }
        });
        ClusterStatus {
            model: self.shared.model.clone(),
            protocol_version: PROTOCOL_VERSION,
            coordinator: self.coordinator(now),
            membership: MembershipStatus {
                current: membership.is_current(),
                since_seconds: sightings.current_for(now),
            },
            groups,
            decoders,
        }
    }

    fn outlook(&self, record: &WorkerRecord) -> (bool, u64) {
        let (stage, epoch) = match record.role {
            Role::Backbone { epoch, .. } => (Stage::Backbone, epoch),
            Role::Decoder => (Stage::Decoder, 0),
        };
        let life = Life {
            worker: record.id.clone(),
            epoch,
        };
        let need = Need::any(stage, &self.shared.model);
        self.shared.router.outlook(&life, need)
    }

    fn coordinator(&self, now: Instant) -> CoordinatorStatus {
        let gate = &self.shared.gate;
        let ((in_flight, waiting), bounds) = (gate.load(), gate.bounds());
        CoordinatorStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: match self.shared.calls.phase() {
                Phase::Serving => CoordinatorState::Serving,
                Phase::Draining | Phase::Ended => CoordinatorState::Draining,
            },
            uptime_seconds: (now - self.shared.started).as_secs_f64(),
            in_flight: in_flight as u64,
            in_flight_capacity: bounds.in_flight as u64,
            waiting: waiting as u64,
            waiting_capacity: bounds.queue as u64,
            backlog_tokens: gate.backlog(),
        }
    }

    fn sightings(&self) -> MutexGuard<'_, Sightings> {
        // What a panicking thread leaves is at worst an older membership.
        let lock = self.shared.sightings.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer")
            .field("model", &self.shared.model)
            .finish_non_exhaustive()
    }
}
