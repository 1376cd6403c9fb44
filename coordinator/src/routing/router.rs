//! The routing table shared among the jobs of a process.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use xomni_cluster::record::WorkerRecord;

use super::{Life, Need, Presence, Routing, Stage};

/// How long a worker may be missing from the membership before it counts as lost: a lapsed lease
/// says that it should not be chosen, not that it is dead.
const GRACE: Duration = Duration::from_secs(3);

/// A shared [`Routing`]; clones are the same table.
#[derive(Clone)]
pub struct Router {
    shared: Arc<Shared>,
}

struct Shared {
    routing: Mutex<Routing>,
    changed: watch::Sender<()>,
}

impl Router {
    /// A router without workers; see [`Routing::new`].
    pub fn new(cooldown: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                routing: Mutex::new(Routing::new(cooldown)),
                changed: watch::Sender::new(()),
            }),
        }
    }

    /// Takes a new state of the membership.
    pub fn update<'a>(&self, records: impl IntoIterator<Item = &'a WorkerRecord>) {
        self.table().update(records);
        self.shared.changed.send_replace(());
    }

    /// Told whenever the membership changes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// How many take work of this kind.
    pub fn ready(&self, stage: Stage, model: &str) -> usize {
        self.table().ready(stage, model)
    }

    /// Work a second of all who serve `model` together; 0 if none has told.
    pub fn rate(&self, stage: Stage, model: &str) -> f64 {
        self.table().rate(stage, model)
    }

    /// Whether a worker would be given work of this kind now, and the work that this process has
    /// given it and that is not done.
    pub fn outlook(&self, life: &Life, need: Need) -> (bool, u64) {
        let table = self.table();
        let takes_work = table.takes_work(life, need, Instant::now());
        (takes_work, table.outstanding(life))
    }

    /// Gives `work` to the worker that is soonest through with its own, if one can take it now.
    pub fn try_assign(&self, need: Need, work: u64) -> Option<Assignment> {
        let mut table = self.table();
        let (life, record) = table.choose(need, Instant::now())?;
        let record = record.clone();
        table.on_assigned(&life, work);
        Some(Assignment {
            router: self.clone(),
            stage: need.stage,
            life,
            record,
            left: work,
        })
    }

    /// Like [`Router::try_assign`], waiting for a worker as long as there is none. Cancel-safe.
    pub async fn assign(&self, need: Need<'_>, work: u64) -> Assignment {
        let mut changes = self.changes();
        loop {
            if let Some(assignment) = self.try_assign(need, work) {
                return assignment;
            }
            let cooled = self.table().next_cooled(Instant::now());
            let cooled = async {
                match cooled {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            // The sender lives as long as this router.
            tokio::select! {
                _ = changes.changed() => {}
                () = cooled => {}
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Routing> {
        // Every change of the table is whole even if its thread then panics.
        let lock = self.shared.routing.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Router").field(&*self.table()).finish()
    }
}

/// Work given to a worker; what is left of it is taken back when this is dropped.
#[derive(Debug)]
pub struct Assignment {
    router: Router,
    stage: Stage,
    life: Life,
    record: WorkerRecord,
    left: u64,
}

impl Assignment {
    /// What the work is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Who has the work.
    pub fn worker(&self) -> &WorkerRecord {
        &self.record
    }

    /// The life of the worker that has it.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// Notes that `work` of it is done.
    pub fn advance(&mut self, work: u64) {
        let work = work.min(self.left);
        self.left -= work;
        self.router.table().on_done(&self.life, work);
    }

    /// Keeps others from the worker for a while: it has failed.
    pub fn fail(self) {
        self.router.table().on_failure(&self.life, Instant::now());
    }

    /// Waits until the worker has another epoch, or has been missing for a while. Cancel-safe.
    pub async fn lost(&self) {
        let mut changes = self.router.changes();
        let mut missing_until = None;
        loop {
            let presence = self.router.table().presence(&self.life);
            match presence {
                Presence::Superseded => return,
                Presence::Present => {
                    missing_until = None;
                    // The sender lives as long as the router.
                    let _ = changes.changed().await;
                }
                Presence::Absent => {
                    let until = *missing_until.get_or_insert_with(|| Instant::now() + GRACE);
                    let change = tokio::time::timeout_at(until.into(), changes.changed());
                    if change.await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

impl Drop for Assignment {
    fn drop(&mut self) {
        self.router.table().on_done(&self.life, self.left);
    }
}
