//! gRPC servers within the test, called over loopback.

use std::net::SocketAddr;

use tokio::{net::TcpListener, runtime::Runtime, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    service::Routes,
    transport::{Channel, Endpoint, Server},
};
use xomni_worker::{
    client::{Calls, Target},
    convert::{Identity, Standing},
};

/// A server on a free port. Dropping it breaks its connections.
#[derive(Debug)]
pub struct Loopback {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its own, so that all its connections end with it.
    runtime: Option<Runtime>,
}

impl Loopback {
    /// Serves `routes`.
    pub fn start(routes: Routes) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a setting");
        let address = listener.local_addr().expect("its address");
        let runtime = Runtime::new().expect("a runtime");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let connections = TcpListenerStream::new(listener);
            let server = Server::builder().add_routes(routes);
            server
                .serve_with_incoming(connections)
                .await
                .expect("serves");
        });
        Self {
            address,
            runtime: Some(runtime),
        }
    }

    /// A channel to it.
    pub fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address));
        endpoint.expect("an address").connect_lazy()
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The identity of a model called `tiny` with some `vocabulary`, and its standing.
pub fn identity(vocabulary: u32) -> (watch::Sender<Standing>, Identity) {
    let (standing, watched) = watch::channel(Standing::ready(1));
    let identity = Identity {
        model: "tiny".into(),
        fingerprint: "f".into(),
        weights_version: "w".into(),
        vocabulary,
        standing: watched,
    };
    (standing, identity)
}

/// Calls that ask for just that identity.
pub fn calls() -> Calls {
    Calls::new(Target {
        model: "tiny".into(),
        fingerprint: "f".into(),
        weights_version: "w".into(),
        epoch: 0,
    })
}
