//! A network between a test and a server that can be cut.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Passes TCP connections on to a server while it is joined. It ends when it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    joined: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens on a free port of the loopback and passes connections on to `server`
    /// (`host:port`).
    ///
    /// # Panics
    /// Without a free port.
    pub async fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
        let address = listener.local_addr().expect("bound address");
        let (joined, state) = watch::channel(true);
        let task = tokio::spawn(accept(listener, server.to_owned(), state));
        Self {
            address,
            joined,
            task,
        }
    }

    /// `host:port` of this relay.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Closes all connections, and new ones as they come.
    pub fn cut(&self) {
        self.joined.send_replace(false);
    }

    /// Passes connections on again.
    pub fn join(&self) {
        self.joined.send_replace(true);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: String, joined: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(pass(client, server.clone(), joined.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn pass(mut client: TcpStream, server: String, mut joined: watch::Receiver<bool>) {
    let passed = async {
        let mut server = TcpStream::connect(server).await?;
        copy_bidirectional(&mut client, &mut server).await
    };
    tokio::select! {
        biased;
        _ = joined.wait_for(|joined| !joined) => {}
        // Either side closed, or failed: both are closed now.
        _ = passed => {}
    }
}
