//! A mirror against a model of etcd that puts, deletes, compacts and goes away at random.

use proptest::prelude::*;

use super::*;

type Records = BTreeMap<String, (String, i64)>;

const KEYS: u8 = 4;

fn key(number: u8) -> String {
    format!("workers/{number}")
}

/// A mirror of texts; what begins with `!` is not readable.
fn mirror() -> Mirror<String> {
    Mirror::new(|_, value| {
        let text = String::from_utf8(value.to_vec()).map_err(|error| error.to_string())?;
        if text.starts_with('!') {
            Err("damaged".into())
        } else {
            Ok(text)
        }
    })
}

fn records(mirror: &Mirror<String>) -> Records {
    let records = mirror.records().iter();
    records
        .map(|(key, kept)| (key.clone(), ((*kept.record).clone(), kept.mod_revision)))
        .collect()
}

/// etcd: a revision is one or more changes; those before the compaction cannot be watched.
#[derive(Debug, Default)]
struct Store {
    history: Vec<Vec<Change>>,
    compacted: i64,
}

impl Store {
    fn revision(&self) -> i64 {
        i64::try_from(self.history.len()).expect("few revisions")
    }

    /// Commits puts (`Some`) and deletions (`None`) as one revision.
    fn commit(&mut self, changes: Vec<(u8, Option<String>)>) {
        let mod_revision = self.revision() + 1;
        let change = |(number, value): (u8, Option<String>)| match value {
            Some(value) => Change::Put(Entry {
                key: key(number),
                value: value.into(),
                mod_revision,
            }),
            None => Change::Delete {
                key: key(number),
                mod_revision,
            },
        };
        self.history.push(changes.into_iter().map(change).collect());
    }

    fn between(&self, first: i64, last: i64) -> impl Iterator<Item = &Change> {
        let revisions = (first..=last).map(|revision| usize::try_from(revision - 1));
        revisions.flat_map(|index| &self.history[index.expect("a revision")])
    }

    fn entries_at(&self, revision: i64) -> Vec<Entry> {
        let mut entries = BTreeMap::new();
        for change in self.between(1, revision) {
            match change {
                Change::Put(entry) => entries.insert(entry.key.clone(), entry.clone()),
                Change::Delete { key, .. } => entries.remove(key),
            };
        }
        entries.into_values().collect()
    }

    fn records_at(&self, revision: i64) -> Records {
        let entries = self.entries_at(revision).into_iter();
        let readable = entries.filter(|entry| !entry.value.starts_with(b"!"));
        let text = |value| String::from_utf8(value).expect("text");
        readable
            .map(|entry| (entry.key, (text(entry.value), entry.mod_revision)))
            .collect()
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// Changes of distinct keys in one revision.
    Commit(Vec<(u8, Option<String>)>),
    /// Compacts up to so many revisions before the newest.
    Compact(i64),
    Disconnect,
    /// The mirror's side does what it planned, or takes in up to so many revisions.
    Step(i64),
    /// etcd sends so many revisions again.
    Repeat(i64),
}

fn op() -> impl Strategy<Value = Op> {
    let value = prop_oneof![
        3 => "[a-z]{2}".prop_map(Some),
        1 => "![a-z]{2}".prop_map(Some),
        2 => Just(None),
    ];
    let changes = prop::collection::btree_map(0..KEYS, value, 1..3);
    prop_oneof![
        4 => changes.prop_map(|changes| Op::Commit(changes.into_iter().collect())),
        1 => (0..6i64).prop_map(Op::Compact),
        1 => Just(Op::Disconnect),
        6 => (1..4i64).prop_map(Op::Step),
        1 => (1..6i64).prop_map(Op::Repeat),
    ]
}

/// The IO side, and what it checks of the mirror after each event.
struct Run {
    store: Store,
    mirror: Mirror<String>,
    /// The revision that the open watch sends next.
    watch: Option<i64>,
    newest: BTreeMap<String, i64>,
}

impl Run {
    fn new() -> Self {
        Self {
            store: Store::default(),
            mirror: mirror(),
            watch: None,
            newest: BTreeMap::new(),
        }
    }

    fn perform(&mut self, op: Op) {
        match op {
            Op::Commit(changes) => self.store.commit(changes),
            Op::Compact(back) => {
                self.store.compacted = self.store.compacted.max(self.store.revision() - back);
            }
            Op::Disconnect => {
                self.watch = None;
                self.apply(Event::Disconnected);
            }
            Op::Step(revisions) => self.step(revisions),
            Op::Repeat(revisions) => {
                if let Some(next) = self.watch {
                    let first = (next - revisions).max(1);
                    let changes = self.store.between(first, next - 1).cloned().collect();
                    self.apply(Event::Changes(changes));
                }
            }
        }
    }

    fn step(&mut self, revisions: i64) {
        let revision = self.store.revision();
        match (self.watch, self.mirror.plan()) {
            (Some(next), _) => {
                let last = (next + revisions - 1).min(revision);
                let changes = self.store.between(next, last).cloned().collect();
                self.watch = Some(last + 1);
                self.apply(Event::Changes(changes));
            }
            (None, Plan::List) => {
                let entries = self.store.entries_at(revision);
                self.apply(Event::Snapshot { revision, entries });
            }
            (None, Plan::Watch { from }) => {
                self.apply(Event::Opened { revision });
                if from < self.store.compacted {
                    self.apply(Event::Compacted);
                } else {
                    self.watch = Some(from);
                }
            }
        }
    }

    fn apply(&mut self, event: Event) {
        let before = (records(&self.mirror), self.mirror.is_current());
        let unreadable = self.mirror.unreadable.clone();
        let outcome = self.mirror.apply(event.clone());
        let after = (records(&self.mirror), self.mirror.is_current());

        a_mirror_is_the_store_as_it_was_at_some_revision(self);
        only_etcd_changes_records(&event, &before.0, &after.0);
        no_record_goes_back(&mut self.newest, &after.0);
        assert!(
            outcome.changed || before == after,
            "a change is told: {event:?}"
        );
        for Unreadable { key, .. } in outcome.unreadable {
            let told = unreadable.contains(&key) && !was_well_between(&event, &key);
            assert!(!told, "{key} is told once");
        }
    }
}

/// Whether the key was readable or absent in the course of these changes.
fn was_well_between(event: &Event, key: &str) -> bool {
    let Event::Changes(changes) = event else {
        return false;
    };
    changes.iter().any(|change| match change {
        Change::Put(entry) => entry.key == key && !entry.value.starts_with(b"!"),
        Change::Delete { key: deleted, .. } => deleted == key,
    })
}

fn a_mirror_is_the_store_as_it_was_at_some_revision(run: &Run) {
    assert_eq!(
        records(&run.mirror),
        run.store.records_at(run.mirror.revision)
    );
}

fn only_etcd_changes_records(event: &Event, before: &Records, after: &Records) {
    match event {
        Event::Snapshot { .. } | Event::Changes(_) => {}
        Event::Opened { .. } | Event::Compacted | Event::Disconnected => assert_eq!(before, after),
    }
}

fn no_record_goes_back(newest: &mut BTreeMap<String, i64>, records: &Records) {
    for (key, (_, mod_revision)) in records {
        let seen = newest.entry(key.clone()).or_default();
        assert!(
            mod_revision >= seen,
            "{key} went from {seen} to {mod_revision}"
        );
        *seen = *mod_revision;
    }
}

fn a_synced_mirror_is_the_store(run: &mut Run) {
    for _ in 0..8 {
        run.step(i64::from(u16::MAX));
    }
    assert!(run.mirror.is_current());
    assert_eq!(
        records(&run.mirror),
        run.store.records_at(run.store.revision())
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_mirror_follows_the_store(ops in prop::collection::vec(op(), 0..60)) {
        let mut run = Run::new();
        for op in ops {
            run.perform(op);
        }
        a_synced_mirror_is_the_store(&mut run);
    }
}

fn entry(number: u8, value: &str, mod_revision: i64) -> Entry {
    Entry {
        key: key(number),
        value: value.into(),
        mod_revision,
    }
}

/// One that watches a store of one record, at revision 5.
fn watching() -> Mirror<String> {
    let mut mirror = mirror();
    let entries = vec![entry(0, "a", 4)];
    assert!(
        mirror
            .apply(Event::Snapshot {
                revision: 5,
                entries
            })
            .changed
    );
    assert!(mirror.apply(Event::Opened { revision: 5 }).changed);
    mirror
}

#[test]
fn a_record_outlives_an_outage_and_the_watch_resumes_behind_it() {
    let mut mirror = watching();
    assert!(mirror.apply(Event::Disconnected).changed);
    assert_eq!(mirror.records().len(), 1);
    assert_eq!(mirror.plan(), Plan::Watch { from: 6 });
    assert_eq!(mirror.apply(Event::Disconnected), Outcome::default());
}

#[test]
fn what_went_during_a_compacted_outage_goes_with_the_list() {
    let mut mirror = watching();
    let _ = mirror.apply(Event::Disconnected);
    let _ = mirror.apply(Event::Opened { revision: 9 });
    let _ = mirror.apply(Event::Compacted);
    assert_eq!((mirror.plan(), mirror.records().len()), (Plan::List, 1));
    assert!(
        mirror
            .apply(Event::Snapshot {
                revision: 9,
                entries: vec![]
            })
            .changed
    );
    assert!(mirror.records().is_empty());
}

#[test]
fn a_store_that_went_back_is_listed_anew() {
    let mut mirror = watching();
    let _ = mirror.apply(Event::Disconnected);
    let _ = mirror.apply(Event::Opened { revision: 2 });
    assert_eq!((mirror.plan(), mirror.records().len()), (Plan::List, 1));
    let entries = vec![entry(1, "b", 2)];
    let _ = mirror.apply(Event::Snapshot {
        revision: 2,
        entries,
    });
    let _ = mirror.apply(Event::Opened { revision: 2 });
    assert_eq!(records(&mirror), Records::from([(key(1), ("b".into(), 2))]));
    assert!(mirror.is_current());
}

#[test]
fn a_member_that_lags_behind_a_list_is_watched() {
    let mut mirror = mirror();
    let _ = mirror.apply(Event::Snapshot {
        revision: 5,
        entries: vec![],
    });
    let _ = mirror.apply(Event::Opened { revision: 3 });
    assert!(mirror.is_current());
    assert_eq!(mirror.plan(), Plan::Watch { from: 6 });
}
