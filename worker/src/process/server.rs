//! The server of a process: gRPC, and plain HTTP/1 and HTTP/2, at one address.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::oneshot,
    time::timeout,
};
use tokio_rustls::rustls::ServerConfig;
use tokio_stream::{Stream, StreamExt};
use tonic::{
    service::Routes,
    transport::{
        Server,
        server::{Connected, TcpIncoming},
    },
};
use xomni_engine::{Error, Result};

use super::{patience::Patient, tls::Handshakes};

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
    tls: Option<Arc<ServerConfig>>,
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
        Ok(Self {
            listener,
            address,
            tls: None,
        })
    }

    /// Speaks TLS, if that is given.
    pub(super) fn with_tls(self, tls: Option<Arc<ServerConfig>>) -> Self {
        Self { tls, ..self }
    }

    /// What addresses of what is served begin with.
    pub fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
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
        let stopped = async {
            let _ = stopped.await;
        };
        let connections = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let serving = async {
            match self.tls {
                None => answer(connections, routes, stopped).await,
                Some(tls) => answer(Handshakes::new(connections, tls), routes, stopped).await,
            }
        };
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

/// Answers the calls of all connections until `stopped`, and then those that run.
async fn answer<IO>(
    connections: impl Stream<Item = io::Result<IO>>,
    routes: Routes,
    stopped: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error>
where
    IO: AsyncRead + AsyncWrite + Connected + Send + Unpin + 'static,
{
    let connections =
        connections.map(|connection| connection.map(|stream| Patient::new(stream, PATIENCE)));
    Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, stopped)
        .await
}
