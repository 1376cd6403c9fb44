//! Workers in other processes, over cached channels.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tonic::transport::{Channel, Endpoint};
use xomni_cluster::record::{Role, WorkerRecord};
use xomni_worker::client::{Calls, Dialer, RemoteBackbone, RemoteDecoder, Target};

use super::Connect;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// How often an open connection is tried, and how long its answer may take: a stopped process
/// closes nothing.
const PING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// Channels that are kept; a worker that comes back has another address.
const CHANNELS: usize = 256;

/// One channel for each address. Clones share them.
#[derive(Debug, Clone)]
pub struct Channels {
    dialer: Dialer,
    channels: Arc<Mutex<HashMap<String, Channel>>>,
}

impl Channels {
    /// None yet; `dialer` makes them.
    pub fn new(dialer: Dialer) -> Self {
        Self {
            dialer,
            channels: Arc::default(),
        }
    }

    /// A channel to `address` (`host:port`), which connects when it is used.
    fn get(&self, address: &str) -> Channel {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return channel.clone();
        }
        if channels.len() >= CHANNELS {
            // Those in use live on with their calls.
            channels.clear();
        }
        let channel = self.lazy(address);
        channels.insert(address.to_owned(), channel.clone());
        channel
    }

    fn lazy(&self, address: &str) -> Channel {
        // What is no address is nobody's: calls fail as they do where nothing listens.
        self.dialer
            .endpoint(address)
            .unwrap_or_else(|_| Endpoint::from_static("http://0.0.0.0:0"))
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .tcp_nodelay(true)
            .connect_lazy()
    }
}

fn calls(worker: &WorkerRecord) -> Calls {
    let epoch = match worker.role {
        Role::Backbone { epoch, .. } => epoch,
        Role::Decoder => 0,
    };
    Calls::new(Target {
        model: worker.model.clone(),
        fingerprint: worker.fingerprint.clone(),
        weights_version: String::new(),
        epoch,
    })
}

/// Reaches backbone groups.
#[derive(Debug, Clone)]
pub struct Backbones(pub Channels);

impl Connect for Backbones {
    type Service = RemoteBackbone;

    fn connect(&self, worker: &WorkerRecord) -> RemoteBackbone {
        RemoteBackbone::new(self.0.get(&worker.address), calls(worker))
    }
}

/// Reaches decoders.
#[derive(Debug, Clone)]
pub struct Decoders(pub Channels);

impl Connect for Decoders {
    type Service = RemoteDecoder;

    fn connect(&self, worker: &WorkerRecord) -> RemoteDecoder {
        RemoteDecoder::new(self.0.get(&worker.address), calls(worker))
    }
}
