//! Since when workers stand as they do.

use std::{collections::HashMap, sync::Arc, time::Instant};

use xomni_cluster::{
    Membership,
    record::{Role, WorkerRecord, WorkerState},
};

/// The membership as last seen, and when each worker was first seen in its state and epoch.
#[derive(Debug)]
pub(super) struct Sightings {
    membership: Arc<Membership>,
    /// When etcd came or went.
    current_since: Instant,
    workers: HashMap<String, (Stand, Instant)>,
}

type Stand = (WorkerState, u64);

fn stand(record: &WorkerRecord) -> Stand {
    match record.role {
        Role::Backbone { epoch, .. } => (record.state, epoch),
        Role::Decoder => (record.state, 0),
    }
}

impl Sightings {
    /// Nothing was seen yet.
    pub fn new(now: Instant) -> Self {
        Self {
            membership: Arc::default(),
            current_since: now,
            workers: HashMap::new(),
        }
    }

    /// Takes a new state of the membership.
    pub fn see(&mut self, membership: &Arc<Membership>, now: Instant) {
        if membership.is_current() != self.membership.is_current() {
            self.current_since = now;
        }
        self.membership = membership.clone();
        let before = std::mem::take(&mut self.workers);
        let seen = membership.workers().map(|record| {
            let stands = stand(record);
            let since = match before.get(&record.id) {
                Some((same, since)) if *same == stands => *since,
                _ => now,
            };
            (record.id.clone(), (stands, since))
        });
        self.workers = seen.collect();
    }

    /// The membership as last seen.
    pub fn membership(&self) -> Arc<Membership> {
        self.membership.clone()
    }

    /// Seconds since etcd came or went.
    pub fn current_for(&self, now: Instant) -> f64 {
        seconds(self.current_since, now)
    }

    /// Seconds since a worker stands as it does.
    pub fn stands_for(&self, id: &str, now: Instant) -> f64 {
        let seen = self.workers.get(id);
        seen.map_or(0.0, |(_, since)| seconds(*since, now))
    }
}

fn seconds(since: Instant, now: Instant) -> f64 {
    now.saturating_duration_since(since).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::tests::backbone, *};

    #[test]
    fn a_change_of_load_does_not_begin_a_new_stand() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut sightings = Sightings::new(start);
        assert_eq!(sightings.current_for(at(1)), 1.0);
        let mut record = backbone("a", 0, 1, 1);
        let see = |sightings: &mut Sightings, record: &WorkerRecord, now| {
            sightings.see(&Arc::new(Membership::from_iter([record.clone()])), now);
        };
        see(&mut sightings, &record, at(2));
        record.load.queued = 7;
        see(&mut sightings, &record, at(5));
        assert_eq!(sightings.current_for(at(6)), 4.0);
        assert_eq!(sightings.stands_for("a", at(6)), 4.0);
        record.state = WorkerState::Draining;
        see(&mut sightings, &record, at(6));
        assert_eq!(sightings.stands_for("a", at(8)), 2.0);
        assert_eq!(sightings.stands_for("b", at(8)), 0.0);
    }
}
