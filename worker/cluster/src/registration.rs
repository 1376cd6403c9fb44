//! A worker's record, kept in etcd under a lease.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::PutOptions;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::error::ClusterError;
use crate::etcd::{Etcd, Members};
use crate::record::WorkerRecord;

/// A lease outlives this many keep-alives but one that fail.
const KEEP_ALIVES_A_LEASE: u32 = 3;
/// Tries to revoke a lease that would else run out.
const REVOCATIONS: u32 = 3;

/// The registration of a worker: its record stands in etcd whenever etcd is there, under a lease
/// that is kept alive on etcd's own thread. A lost lease costs the worker new work until it has
/// another, and nothing else.
///
/// Dropped without [`withdraw`](Self::withdraw), the record goes when the lease runs out.
#[derive(Debug)]
pub struct Registration {
    record: watch::Sender<WorkerRecord>,
    withdraw: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
    /// The keeper runs on its thread.
    _etcd: Arc<Etcd>,
}

impl Registration {
    pub(crate) fn start(
        etcd: Arc<Etcd>,
        key: String,
        lease: Duration,
        record: WorkerRecord,
    ) -> Self {
        let (record, records) = watch::channel(record);
        let (withdraw, withdrawn) = oneshot::channel();
        let keeper = Keeper {
            members: etcd.members(),
            key,
            lease,
            record: records,
            held: None,
            away: false,
        };
        let keeper = etcd.spawn(keeper.run(withdrawn));
        Self {
            record,
            withdraw,
            keeper,
            _etcd: etcd,
        }
    }

    /// Replaces the record, all but its id. Returns at once; of several updates in a row only the
    /// last may be written, and one that changes nothing is not.
    pub fn update(&self, record: WorkerRecord) {
        self.record.send_if_modified(|current| {
            let record = WorkerRecord {
                id: current.id.clone(),
                ..record
            };
            let changed = *current != record;
            *current = record;
            changed
        });
    }

    /// Takes the record out of etcd. Returns when it is gone, or, if etcd is not there, when that
    /// is left to the lease. Once polled, it goes on when
    /// the future is dropped, while the [`Cluster`](crate::Cluster) lives.
    pub async fn withdraw(self) {
        if self.withdraw.send(()).is_ok()
            && let Err(error) = self.keeper.await
        {
            warn!(%error, "the record of this worker is left to its lease");
        }
    }
}

/// Owns the lease.
struct Keeper {
    members: Arc<Members>,
    key: String,
    lease: Duration,
    record: watch::Receiver<WorkerRecord>,
    held: Option<Held>,
    /// Whether etcd did not answer last time; said once an outage.
    away: bool,
}

/// A lease that etcd granted and did not yet deny.
#[derive(Debug, Clone, Copy)]
struct Held {
    id: i64,
    period: Duration,
    /// When to keep it alive next.
    due: Instant,
    /// Whether the record as it is stands under it.
    written: bool,
}

impl Keeper {
    async fn run(mut self, withdrawn: oneshot::Receiver<()>) {
        let withdrawn = tokio::select! {
            never = self.keep() => match never {},
            withdrawn = withdrawn => withdrawn.is_ok(),
        };
        if withdrawn && let Some(held) = self.held {
            self.revoke(held.id).await;
        }
    }

    async fn keep(&mut self) -> Infallible {
        let mut backoff = Backoff::new();
        loop {
            match self.turn().await {
                Ok(()) => backoff.reset(),
                Err(error) if error.is_not_found() => {
                    warn!(key = self.key, "lease lost, registering anew");
                    self.held = None;
                }
                Err(error) => {
                    if !self.away {
                        warn!(key = self.key, %error, "registration waits for etcd");
                        self.away = true;
                    }
                    backoff.wait().await;
                }
            }
        }
    }

    /// Does what is due, then waits until something is. A step that fails is due again.
    async fn turn(&mut self) -> Result<(), ClusterError> {
        let mut held = match self.held {
            Some(held) => held,
            None => self.grant().await?,
        };
        if Instant::now() >= held.due {
            // A stream for one keep-alive, so that none is open to a member that is gone.
            self.members
                .call(|mut client| async move { client.lease_keep_alive(held.id).await })
                .await?;
            held.due = Instant::now() + held.period;
            self.held = Some(held);
        }
        if !held.written {
            self.put(held.id).await?;
            held.written = true;
            self.held = Some(held);
        }
        if self.away {
            info!(key = self.key, "registered again");
            self.away = false;
        }
        tokio::select! {
            () = tokio::time::sleep_until(held.due) => {}
            changed = self.record.changed() => {
                if changed.is_err() {
                    // The registration is dropped, which ends this future too.
                    std::future::pending::<()>().await;
                }
                self.held = Some(Held { written: false, ..held });
            }
        }
        Ok(())
    }

    async fn grant(&mut self) -> Result<Held, ClusterError> {
        let seconds = i64::try_from(self.lease.as_secs().max(1)).unwrap_or(i64::MAX);
        let granted = self
            .members
            .call(|mut client| async move { client.lease_grant(seconds, None).await })
            .await?;
        let granted_for = Duration::from_secs(granted.ttl().max(1).unsigned_abs());
        let period = granted_for / KEEP_ALIVES_A_LEASE;
        let held = Held {
            id: granted.id(),
            period,
            due: Instant::now() + period,
            written: false,
        };
        self.held = Some(held);
        Ok(held)
    }

    async fn put(&mut self, lease: i64) -> Result<(), ClusterError> {
        let value = serde_json::to_vec(&*self.record.borrow_and_update()).map_err(|error| {
            ClusterError::Record {
                key: self.key.clone(),
                reason: error.to_string(),
            }
        })?;
        let options = PutOptions::new().with_lease(lease);
        let key = self.key.as_str();
        self.members
            .call(|mut client| async move { client.put(key, value, Some(options)).await })
            .await?;
        Ok(())
    }

    async fn revoke(&mut self, lease: i64) {
        let mut backoff = Backoff::new();
        for tries_left in (0..REVOCATIONS).rev() {
            let revoked = self
                .members
                .call(|mut client| async move { client.lease_revoke(lease).await });
            match revoked.await {
                Ok(_) => return,
                Err(error) if error.is_not_found() => return,
                Err(error) if tries_left == 0 => {
                    warn!(key = self.key, %error, "the record is left to its lease");
                }
                Err(_) => backoff.wait().await,
            }
        }
    }
}
