//! A cluster, as one of its processes reaches it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::transport::ClientTlsConfig;

use crate::epoch;
use crate::error::ClusterError;
use crate::etcd::Etcd;
use crate::membership::Membership;
use crate::mirror::Mirror;
use crate::record::{EpochRecord, Keys, WorkerRecord};
use crate::registration::Registration;
use crate::watch::{Range, follow};

/// A worker whose process is gone is out of the records after so long.
const LEASE: Duration = Duration::from_secs(10);

/// Reaches the records of one cluster. Clones share a connection; it ends with the last of them
/// and the last [`Registration`].
#[derive(Debug, Clone)]
pub struct Cluster {
    etcd: Arc<Etcd>,
    keys: Keys,
    lease: Duration,
}

impl Cluster {
    /// The cluster of this name in the etcd of these addresses (`host:port` or
    /// `http://host:port`). Nothing is awaited: connections are made when needed, for ever.
    ///
    /// # Errors
    /// [`ClusterError::Name`] and [`ClusterError::Endpoints`] for what can never work,
    /// [`ClusterError::Thread`] without a thread to work on.
    pub fn connect(endpoints: &[String], cluster: &str) -> Result<Self, ClusterError> {
        Self::connect_with(endpoints, cluster, None)
    }

    /// As [`Self::connect`]. With `tls`, addresses without a scheme are called over TLS, as
    /// `https://host:port` is.
    ///
    /// # Errors
    /// As there.
    pub fn connect_with(
        endpoints: &[String],
        cluster: &str,
        tls: Option<ClientTlsConfig>,
    ) -> Result<Self, ClusterError> {
        if cluster.is_empty() || cluster.contains('/') {
            return Err(ClusterError::Name {
                name: cluster.into(),
            });
        }
        let etcd = Arc::new(Etcd::new(endpoints, tls)?);
        Ok(Self {
            etcd,
            keys: Keys::new(cluster),
            lease: LEASE,
        })
    }

    /// Registers from here on under leases of another length, in whole seconds; etcd makes it 2 s
    /// at least. The default is 10 s.
    pub fn with_lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// Registers a worker, now or as soon as etcd is there, and for as long as what is returned
    /// lives.
    pub fn register(&self, record: WorkerRecord) -> Registration {
        let key = self.keys.worker(&record.id);
        Registration::start(self.etcd.clone(), key, self.lease, record)
    }

    /// The workers, and every change of them. While etcd is away it stays as last seen. The first
    /// value is empty and not [current](Membership::is_current). The watch ends when its receivers
    /// are dropped, or the last clone of this cluster.
    pub fn watch_workers(&self) -> watch::Receiver<Arc<Membership>> {
        let folder = self.keys.workers();
        let mirror = Mirror::new({
            let folder = folder.clone();
            move |key, value| {
                let record: WorkerRecord = read(value)?;
                let id = key.strip_prefix(&folder).unwrap_or(key);
                (record.id == id)
                    .then_some(record)
                    .ok_or("names another worker".into())
            }
        });
        let (sender, receiver) = watch::channel(Arc::default());
        let view = |mirror: &Mirror<_>| Arc::new(Membership::of(mirror));
        self.etcd.spawn(follow(
            self.etcd.members(),
            Range::Folder(folder),
            mirror,
            view,
            sender,
        ));
        receiver
    }

    /// The epoch of a group, and every newer one. While etcd is away it stays as last seen; `None`
    /// before the first. The watch ends as that of [`Self::watch_workers`].
    pub fn watch_epoch(&self, group: &str) -> watch::Receiver<Option<EpochRecord>> {
        let mirror = Mirror::new(|_, value| read(value));
        let (sender, receiver) = watch::channel(None);
        let view = |mirror: &Mirror<EpochRecord>| {
            mirror
                .records()
                .values()
                .next()
                .map(|kept| EpochRecord::clone(&kept.record))
        };
        let range = Range::Key(self.keys.epoch(group));
        self.etcd
            .spawn(follow(self.etcd.members(), range, mirror, view, sender));
        receiver
    }

    /// Takes the next epoch of a group for its leader, reached at `address`. Numbers of a group
    /// rise strictly and each has one leader, however many ask at once; the newest leads.
    ///
    /// Dropped before it is ready, it may have taken a number that nobody leads, which does no
    /// harm.
    ///
    /// # Errors
    /// [`ClusterError::Etcd`] and [`ClusterError::Timeout`] if etcd does not answer for some
    /// seconds, [`ClusterError::Contended`], [`ClusterError::Record`] if what stands there is not
    /// an epoch, [`ClusterError::Random`].
    pub async fn next_epoch(
        &self,
        group: &str,
        leader: &str,
        address: &str,
        group_size: u32,
    ) -> Result<EpochRecord, ClusterError> {
        let proposal = EpochRecord {
            number: 0,
            leader: leader.into(),
            address: address.into(),
            group_size,
            secret: epoch::secret()?,
        };
        epoch::take_next(
            &self.etcd.members(),
            group,
            &self.keys.epoch(group),
            proposal,
        )
        .await
    }
}

fn read<R: serde::de::DeserializeOwned>(value: &[u8]) -> Result<R, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_work_is_refused() {
        let endpoints = ["127.0.0.1:2379".to_string()];
        for name in ["", "a/b"] {
            let error = Cluster::connect(&endpoints, name).expect_err("refused");
            assert!(matches!(error, ClusterError::Name { .. }), "{error}");
        }
        for endpoints in [vec![], vec!["not an address".to_string()]] {
            let error = Cluster::connect(&endpoints, "a").expect_err("refused");
            assert!(matches!(error, ClusterError::Endpoints { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_cluster_may_be_made_and_dropped_inside_a_runtime() {
        let cluster = Cluster::connect(&["127.0.0.1:1".to_string()], "a").expect("no etcd needed");
        let workers = cluster.watch_workers();
        drop(cluster);
        assert!(!workers.borrow().is_current());
    }
}
