//! A copy of some keys of etcd, kept by listing them once and watching them from then on: the
//! protocol, without IO.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// What came from etcd.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// All the keys, as they were at a revision of the store.
    Snapshot { revision: i64, entries: Vec<Entry> },
    /// A watch stands; the member that serves it is at this revision.
    Opened { revision: i64 },
    /// Changes, in order; those of one revision come together.
    Changes(Vec<Change>),
    /// The changes that were asked for are no longer kept.
    Compacted,
    /// No connection, or the watch ended.
    Disconnected,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) mod_revision: i64,
}

/// A change of a key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    Put(Entry),
    Delete { key: String, mod_revision: i64 },
}

/// What to ask of etcd next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// List all keys.
    List,
    /// Watch the keys from this revision on.
    Watch { from: i64 },
}

/// How a mirror stands to etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The keys are to be listed.
    Unlisted,
    /// The keys are as listed just now.
    Listed,
    /// Changes come in.
    Watching,
    /// The watch was lost, and is to be resumed.
    Lost,
}

/// A record and the revision that wrote it.
#[derive(Debug, Clone)]
pub(crate) struct Kept<R> {
    pub(crate) record: Arc<R>,
    pub(crate) mod_revision: i64,
}

/// Whether an event changed what is seen, and what could not be read for the first time.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use]
pub(crate) struct Outcome {
    pub(crate) changed: bool,
    pub(crate) unreadable: Vec<Unreadable>,
}

/// A record that stands in etcd and is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) key: String,
    pub(crate) reason: String,
}

/// Makes a record of a key and its value, or says why it is none.
type Read<R> = Box<dyn Fn(&str, &[u8]) -> Result<R, String> + Send + Sync>;

/// The records under some keys. It changes by what etcd says alone: while etcd is away it stays.
pub(crate) struct Mirror<R> {
    read: Read<R>,
    records: BTreeMap<String, Kept<R>>,
    unreadable: BTreeSet<String>,
    /// All changes up to this one are in.
    revision: i64,
    phase: Phase,
}

impl<R> Mirror<R> {
    /// An empty one. `read` makes a record of a key and its value, or says why it is none; such a
    /// key counts as absent.
    pub(crate) fn new(
        read: impl Fn(&str, &[u8]) -> Result<R, String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            read: Box::new(read),
            records: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            revision: 0,
            phase: Phase::Unlisted,
        }
    }

    /// The records by key.
    pub(crate) fn records(&self) -> &BTreeMap<String, Kept<R>> {
        &self.records
    }

    /// Whether a watch stands.
    pub(crate) fn is_current(&self) -> bool {
        self.phase == Phase::Watching
    }

    /// What to ask of etcd next.
    pub(crate) fn plan(&self) -> Plan {
        match self.phase {
            Phase::Unlisted => Plan::List,
            Phase::Listed | Phase::Watching | Phase::Lost => Plan::Watch {
                from: self.revision.saturating_add(1),
            },
        }
    }

    /// Takes in what came from etcd.
    pub(crate) fn apply(&mut self, event: Event) -> Outcome {
        let mut outcome = Outcome::default();
        let was_current = self.is_current();
        match event {
            Event::Snapshot { revision, entries } => self.replace(revision, entries, &mut outcome),
            Event::Opened { revision } => {
                // A store that went back is another one: its etcd was replaced. After a list, it
                // is only a member that lags behind the one that answered.
                let replaced = self.phase == Phase::Lost && revision < self.revision;
                self.phase = if replaced {
                    Phase::Unlisted
                } else {
                    Phase::Watching
                };
            }
            Event::Changes(changes) => {
                let seen = self.revision;
                for change in changes {
                    self.change(change, seen, &mut outcome);
                }
            }
            Event::Compacted => self.phase = Phase::Unlisted,
            Event::Disconnected => {
                self.phase = match self.phase {
                    Phase::Watching => Phase::Lost,
                    phase @ (Phase::Unlisted | Phase::Listed | Phase::Lost) => phase,
                }
            }
        }
        outcome.changed |= was_current != self.is_current();
        outcome
    }

    fn replace(&mut self, revision: i64, entries: Vec<Entry>, outcome: &mut Outcome) {
        let listed: BTreeSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
        let before = self.records.len();
        self.records.retain(|key, _| listed.contains(key));
        self.unreadable.retain(|key| listed.contains(key));
        outcome.changed |= self.records.len() != before;
        for entry in entries {
            self.put(entry, outcome);
        }
        self.revision = revision;
        self.phase = Phase::Listed;
    }

    /// `seen`: the revision up to which changes were in before these.
    fn change(&mut self, change: Change, seen: i64, outcome: &mut Outcome) {
        let (Change::Put(Entry { mod_revision, .. }) | Change::Delete { mod_revision, .. }) =
            &change;
        let mod_revision = *mod_revision;
        if mod_revision <= seen {
            return;
        }
        match change {
            Change::Put(entry) => self.put(entry, outcome),
            Change::Delete { key, .. } => {
                outcome.changed |= self.records.remove(&key).is_some();
                self.unreadable.remove(&key);
            }
        }
        self.revision = self.revision.max(mod_revision);
    }

    fn put(&mut self, entry: Entry, outcome: &mut Outcome) {
        let Entry {
            key,
            value,
            mod_revision,
        } = entry;
        if self
            .records
            .get(&key)
            .is_some_and(|kept| kept.mod_revision == mod_revision)
        {
            return;
        }
        match (self.read)(&key, &value) {
            Ok(record) => {
                self.unreadable.remove(&key);
                self.records.insert(
                    key,
                    Kept {
                        record: Arc::new(record),
                        mod_revision,
                    },
                );
                outcome.changed = true;
            }
            Err(reason) => {
                outcome.changed |= self.records.remove(&key).is_some();
                if self.unreadable.insert(key.clone()) {
                    outcome.unreadable.push(Unreadable { key, reason });
                }
            }
        }
    }
}

impl<R> fmt::Debug for Mirror<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror")
            .field("keys", &self.records.keys())
            .field("unreadable", &self.unreadable)
            .field("revision", &self.revision)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}
