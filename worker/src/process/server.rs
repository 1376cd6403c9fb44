//! The server of a process: gRPC, and plain HTTP/1 and HTTP/2, at one address.

use std::{
    future::Future,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, sync::oneshot, time::timeout};
use tokio_stream::StreamExt;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use xomni_engine::{Error, Result};

use super::patience::Patient;

/// How long a new connection may be silent, and how long a client may not take its answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often an idle connection is tried.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long a tried connection may be silent before it is taken for broken.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A socket that takes connections, which wait until it is [served](Listener::serve).
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

/// How a server came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every call has ended.
    Empty,
    /// The deadline passed while calls went on.
    Overdue,
}

impl Listener {
    /// Listens at an address.
    ///
    /// # Errors
    /// [`Error::Io`] naming it.
    pub async fn bind(address: SocketAddr) -> Result<Self> {
        let io = |error| Error::io(Path::new(&address.to_string()), error);
        let listener = TcpListener::bind(address).await.map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        Ok(Self { listener, address })
    }

    /// Where it listens; the port is the one that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `routes` until `stop`, then takes no more calls and waits for those that run, no
    /// longer than `drain`.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] if the server fails.
    pub async fn serve(
        self,
        routes: Routes,
        stop: impl Future<Output = ()>,
        drain: Duration,
    ) -> Result<Drained> {
        let (stopping, stopped) = oneshot::channel::<()>();
        let incoming = TcpIncoming::from(self.listener)
            .with_nodelay(Some(true))
            .map(|connection| connection.map(|stream| Patient::new(stream, PATIENCE)));
        let serving = Server::builder()
            .accept_http1(true)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, async {
                let _ = stopped.await;
            });
        tokio::pin!(serving);
        let failed =
            |error: tonic::transport::Error| Err(Error::worker_lost("server", error.to_string()));
        tokio::select! {
            ended = &mut serving => return ended.map_or_else(failed, |()| Ok(Drained::Empty)),
            () = stop => {}
        }
        let began = Instant::now();
        drop(stopping);
        match timeout(drain, serving).await {
            Ok(Ok(())) => {
                tracing::info!(took = ?began.elapsed(), "drained");
                Ok(Drained::Empty)
            }
            Ok(Err(error)) => failed(error),
            Err(_) => {
                tracing::warn!(after = ?drain, "calls in progress are given up");
                Ok(Drained::Overdue)
            }
        }
    }
}
