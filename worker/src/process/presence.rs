//! A worker as the rest of the cluster sees it: its record in etcd and its health.

use std::{convert::Infallible, time::Duration};

use tokio::{sync::watch, time::interval};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};
use xomni_cluster::{
    Cluster, Registration,
    record::{Load, Role, WorkerRecord, WorkerState},
};

use crate::convert::Standing;

/// How often the load is refreshed.
const REFRESH: Duration = Duration::from_secs(1);
/// How long a process that ends waits for etcd.
const WITHDRAWAL: Duration = Duration::from_secs(2);

/// Keeps a worker's record and its health service as its [`Standing`] says.
#[derive(Debug)]
pub struct Presence {
    record: WorkerRecord,
    standing: watch::Sender<Standing>,
    registration: Option<Registration>,
    service: &'static str,
    health: HealthReporter,
}

impl Presence {
    /// Registers a warm worker, in `cluster` if there is one, and returns its health service: that
    /// of the process, and of the gRPC `service` by name.
    pub fn new(
        record: WorkerRecord,
        standing: watch::Sender<Standing>,
        cluster: Option<&Cluster>,
        service: &'static str,
    ) -> (Self, HealthServer<impl Health>) {
        let (health, server) = tonic_health::server::health_reporter();
        let registration = cluster.map(|cluster| cluster.register(record.clone()));
        let presence = Self {
            record,
            standing,
            registration,
            service,
            health,
        };
        (presence, server)
    }

    /// Follows the standing for as long as it is polled: a change of epoch or state is told at
    /// once, the load every second.
    pub async fn keep(&self) -> Infallible {
        let mut changes = self.standing.subscribe();
        let mut ticks = interval(REFRESH);
        loop {
            let told = *self.standing.borrow();
            self.show(&told).await;
            let changed = |now: &Standing| (now.epoch, now.state) != (told.epoch, told.state);
            tokio::select! {
                _ = ticks.tick() => {}
                // The sender is here.
                _ = changes.wait_for(changed) => {}
            }
        }
    }

    /// Like [`Presence::keep`], with the load that `load` measures.
    pub async fn keep_measuring(&self, load: impl Fn() -> Load) -> Infallible {
        let measure = async {
            let mut ticks = interval(REFRESH);
            loop {
                self.standing.send_modify(|standing| standing.load = load());
                ticks.tick().await;
            }
        };
        tokio::select! {
            biased;
            never = measure => never,
            never = self.keep() => never,
        }
    }

    async fn show(&self, standing: &Standing) {
        let status = match standing.state {
            WorkerState::Ready => ServingStatus::Serving,
            WorkerState::Forming | WorkerState::Draining => ServingStatus::NotServing,
        };
        for service in ["", self.service] {
            self.health.set_service_status(service, status).await;
        }
        let Some(registration) = &self.registration else {
            return;
        };
        let mut record = self.record.clone();
        record.state = standing.state;
        record.load = standing.load;
        if let Role::Backbone { epoch, .. } = &mut record.role {
            *epoch = standing.epoch;
        }
        registration.update(record);
    }

    /// Takes no more work.
    pub fn drain(&self) {
        self.standing
            .send_modify(|standing| standing.state = WorkerState::Draining);
    }

    /// Leaves the cluster; where etcd does not answer, its lease does that later.
    pub async fn withdraw(self) {
        if let Some(registration) = self.registration {
            // Late or not, the process ends.
            let _ = tokio::time::timeout(WITHDRAWAL, registration.withdraw()).await;
        }
    }
}
