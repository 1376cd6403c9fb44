//! The connection with etcd, and the thread that everything to do with it runs on.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::ClientTlsConfig;

use crate::error::ClusterError;

/// A member that takes no connection for so long is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An answer that takes longer is taken for none.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How a watch whose connection died silently is noticed. etcd refuses clients that ping more
/// often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// The members of etcd, one client each. Calls go to one of them until it fails.
pub(crate) struct Members {
    clients: Vec<Client>,
    chosen: AtomicUsize,
}

impl Members {
    /// A client each. Nothing is connected yet, but the connections will belong to the runtime that
    /// this runs on.
    async fn new(
        endpoints: &[String],
        tls: Option<&ClientTlsConfig>,
    ) -> Result<Self, ClusterError> {
        let refused = |reason: String| ClusterError::Endpoints {
            endpoints: endpoints.to_vec(),
            reason,
        };
        if endpoints.is_empty() {
            return Err(refused("none is given".into()));
        }
        let mut clients = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let client = Client::connect([endpoint], Some(options(endpoint, tls))).await;
            clients.push(client.map_err(|error| refused(error.to_string()))?);
        }
        Ok(Self {
            clients,
            chosen: AtomicUsize::new(0),
        })
    }

    /// Calls a member and gives it [`REQUEST_TIMEOUT`]. If it does not do, the next call goes to
    /// the next member.
    ///
    /// # Errors
    /// Those of the call, and [`ClusterError::Timeout`].
    pub(crate) async fn call<T, F>(&self, call: impl FnOnce(Client) -> F) -> Result<T, ClusterError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let chosen = self.chosen.load(Ordering::Relaxed);
        let client = self.clients[chosen].clone();
        let error = match tokio::time::timeout(REQUEST_TIMEOUT, call(client)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error.into(),
            Err(_) => ClusterError::Timeout(REQUEST_TIMEOUT),
        };
        if error.retryable() && !error.is_not_found() {
            let next = (chosen + 1) % self.clients.len();
            // Fails if another call already went on.
            let _ =
                self.chosen
                    .compare_exchange(chosen, next, Ordering::Relaxed, Ordering::Relaxed);
        }
        Err(error)
    }
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members")
            .field("count", &self.clients.len())
            .finish_non_exhaustive()
    }
}

/// Reaches etcd from a thread of its own, so that a process whose other threads are busy or
/// blocked keeps its leases. What runs on the thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Etcd {
    members: Arc<Members>,
    runtime: runtime::Handle,
    /// Dropped, it ends the thread.
    _stop: oneshot::Sender<()>,
}

impl Etcd {
    /// Connects when first used, and anew whenever a connection is lost.
    ///
    /// # Errors
    /// For addresses that are none, and if the thread cannot be started; never because etcd is
    /// not there.
    pub(crate) fn new(
        endpoints: &[String],
        tls: Option<ClientTlsConfig>,
    ) -> Result<Self, ClusterError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, started) = mpsc::sync_channel(1);
        let endpoints = endpoints.to_vec();
        let serve = move || {
            let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(ClusterError::Thread(error)))),
            };
            runtime.block_on(async {
                let members = Members::new(&endpoints, tls.as_ref()).await;
                let handle = runtime.handle().clone();
                let usable = members.is_ok();
                if ready.send(members.map(|members| (members, handle))).is_ok() && usable {
                    // Ends with an error, when the other half is dropped.
                    let _ = stopped.await;
                }
            });
        };
        thread::Builder::new()
            .name("etcd".into())
            .spawn(serve)
            .map_err(ClusterError::Thread)?;
        let (members, runtime) = started
            .recv()
            .map_err(|error| ClusterError::Thread(std::io::Error::other(error)))??;
        Ok(Self {
            members: Arc::new(members),
            runtime,
            _stop: stop,
        })
    }

    /// The members, to call.
    pub(crate) fn members(&self) -> Arc<Members> {
        self.members.clone()
    }

    /// Runs a task on etcd's thread, until it ends or this is dropped.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime.spawn(task)
    }
}

fn options(endpoint: &str, tls: Option<&ClientTlsConfig>) -> ConnectOptions {
    let options = ConnectOptions::new();
    let options = match tls.filter(|_| !endpoint.starts_with("http://")) {
        Some(tls) => options.with_tls(tls.clone()),
        None => options,
    };
    options
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        // A member cut off from the others would keep a watch open and silent.
        .with_require_leader(true)
}
