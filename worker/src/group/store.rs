//! Where epochs come from.

use std::{
    collections::hash_map::RandomState,
    future::Future,
    hash::{BuildHasher, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use xomni_cluster::{Cluster, ClusterError, record::EpochRecord};

/// Hands out the epochs of groups, each number once.
pub trait EpochStore: Clone + Send + Sync + 'static {
    /// Why no epoch could be taken; it can be tried again.
    type Error: std::fmt::Display + Send;

    /// Takes the next epoch of `group` for `leader`, whose services are at `address`.
    fn next_epoch(
        &self,
        group: &str,
        leader: &str,
        address: &str,
        group_size: u32,
    ) -> impl Future<Output = Result<EpochRecord, Self::Error>> + Send;

    /// The newest epoch of `group`, once one is known.
    fn watch_epoch(&self, group: &str) -> watch::Receiver<Option<EpochRecord>>;
}

/// The epochs of a process that serves alone, without etcd: 1 first.
#[derive(Debug, Clone)]
pub struct LoneStore(Arc<Mutex<watch::Sender<Option<EpochRecord>>>>);

impl Default for LoneStore {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(watch::Sender::new(None))))
    }
}

impl EpochStore for LoneStore {
    type Error = std::convert::Infallible;

    async fn next_epoch(
        &self,
        _: &str,
        leader: &str,
        address: &str,
        group_size: u32,
    ) -> Result<EpochRecord, Self::Error> {
        let newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = newest.borrow().as_ref().map_or(0, |record| record.number) + 1;
        let record = EpochRecord {
            number,
            leader: leader.to_owned(),
            address: address.to_owned(),
            group_size,
            secret: format!("{:016x}", RandomState::new().build_hasher().finish()),
        };
        newest.send_replace(Some(record.clone()));
        Ok(record)
    }

    fn watch_epoch(&self, _: &str) -> watch::Receiver<Option<EpochRecord>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .subscribe()
    }
}

impl EpochStore for Cluster {
    type Error = ClusterError;

    async fn next_epoch(
        &self,
        group: &str,
        leader: &str,
        address: &str,
        group_size: u32,
    ) -> Result<EpochRecord, Self::Error> {
        Self::next_epoch(self, group, leader, address, group_size).await
    }

    fn watch_epoch(&self, group: &str) -> watch::Receiver<Option<EpochRecord>> {
        Self::watch_epoch(self, group)
    }
}
