//! The workers of a cluster, as last seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::mirror::Mirror;
use crate::record::WorkerRecord;

/// The registered workers. While etcd is away it is as last seen: a worker that went meanwhile is
/// still among them, until etcd is back and says so.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Membership {
    workers: BTreeMap<String, Arc<WorkerRecord>>,
    current: bool,
}

/// What is known of a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// etcd lists it.
    Registered(Arc<WorkerRecord>),
    /// etcd is away or was not yet heard: it may be there or not. If it was seen before, its last
    /// record.
    Unknown(Option<Arc<WorkerRecord>>),
    /// etcd lists no such worker: it withdrew, or lost its lease, or never was.
    Gone,
}

impl Membership {
    pub(crate) fn of(mirror: &Mirror<WorkerRecord>) -> Self {
        let workers = mirror.records().values();
        Self {
            workers: workers
                .map(|kept| (kept.record.id.clone(), kept.record.clone()))
                .collect(),
            current: mirror.is_current(),
        }
    }

    /// The workers, ordered by id.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerRecord> {
        self.workers.values().map(Arc::as_ref)
    }

    /// The worker of this id, as last seen.
    pub fn get(&self, id: &str) -> Option<&WorkerRecord> {
        self.workers.get(id).map(Arc::as_ref)
    }

    /// What is known of the worker of this id.
    pub fn standing(&self, id: &str) -> Standing {
        match (self.workers.get(id), self.current) {
            (Some(record), true) => Standing::Registered(record.clone()),
            (None, true) => Standing::Gone,
            (record, false) => Standing::Unknown(record.cloned()),
        }
    }

    /// Whether etcd is there and tells of changes as they come.
    pub fn is_current(&self) -> bool {
        self.current
    }
}

/// A membership without etcd: these workers, and current.
impl FromIterator<WorkerRecord> for Membership {
    fn from_iter<I: IntoIterator<Item = WorkerRecord>>(workers: I) -> Self {
        let workers = workers
            .into_iter()
            .map(|record| (record.id.clone(), Arc::new(record)))
            .collect();
        Self {
            workers,
            current: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Load, Role, WorkerState};

    fn worker(id: &str) -> WorkerRecord {
        WorkerRecord {
            id: id.into(),
            address: "127.0.0.1:1".into(),
            protocol_version: 1,
            model: "m".into(),
            fingerprint: "f".into(),
            state: WorkerState::Ready,
            role: Role::Decoder,
            load: Load::default(),
        }
    }

    #[test]
    fn gone_is_said_only_while_etcd_is_there() {
        let current = Membership::from_iter([worker("a")]);
        assert_eq!(
            current.standing("a"),
            Standing::Registered(Arc::new(worker("a")))
        );
        assert_eq!(current.standing("b"), Standing::Gone);
        let stale = Membership {
            current: false,
            ..current
        };
        assert_eq!(
            stale.standing("a"),
            Standing::Unknown(Some(Arc::new(worker("a"))))
        );
        assert_eq!(stale.standing("b"), Standing::Unknown(None));
        assert_eq!(stale.workers().count(), 1);
    }
}
