//! The connection with etcd, and the thread that everything to do with it runs on.

use std::future::Future;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::ClusterError;

/// A member that takes no connection for so long is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An answer that takes longer is taken for none.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How a watch whose connection died silently is noticed. etcd refuses clients that ping more
/// often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// A client of etcd on a thread of its own, so that a process whose other threads are busy or
/// blocked keeps its leases. What runs on the thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Etcd {
    client: ClientHandle,
    runtime: runtime::Handle,
    /// Dropped, it ends the thread.
    _stop: oneshot::Sender<()>,
}

/// [`Client`] does not say what it is when it is printed.
#[derive(Clone)]
struct ClientHandle(Client);

impl std::fmt::Debug for ClientHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects when first used, and anew whenever a connection is lost.
    ///
    /// # Errors
    /// For addresses that are none, and if the thread cannot be started; never because etcd is
    /// not there.
    pub(crate) fn new(endpoints: &[String]) -> Result<Self, ClusterError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, started) = mpsc::sync_channel(1);
        let addresses = endpoints.to_vec();
        thread::Builder::new()
            .name("etcd".into())
            .spawn(move || {
                let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(ready.send(Err(ClusterError::Thread(error)))),
                };
                runtime.block_on(async {
                    // This only builds the channels: nothing is connected yet.
                    let client = Client::connect(&addresses, Some(options())).await;
                    let started = client
                        .map(|client| (ClientHandle(client), runtime::Handle::current()))
                        .map_err(|error| ClusterError::Endpoints {
                            endpoints: addresses,
                            reason: error.to_string(),
                        });
                    let usable = started.is_ok();
                    if ready.send(started).is_ok() && usable {
                        // Ends with an error, when the other half is dropped.
                        let _ = stopped.await;
                    }
                });
            })
            .map_err(ClusterError::Thread)?;
        let (client, runtime) = started
            .recv()
            .map_err(|error| ClusterError::Thread(std::io::Error::other(error)))??;
        Ok(Self {
            client,
            runtime,
            _stop: stop,
        })
    }

    /// A client to call; calls belong inside [`within`].
    pub(crate) fn client(&self) -> Client {
        self.client.0.clone()
    }

    /// Runs a task on etcd's thread, until it ends or this is dropped.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime.spawn(task)
    }
}

fn options() -> ConnectOptions {
    ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        // A member cut off from the others would keep a watch open and silent.
        .with_require_leader(true)
}

/// Gives a call of etcd's client [`REQUEST_TIMEOUT`].
///
/// # Errors
/// Those of the call, and [`ClusterError::Timeout`].
pub(crate) async fn within<T>(
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, ClusterError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ClusterError::Timeout(REQUEST_TIMEOUT)),
    }
}
