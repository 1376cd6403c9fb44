//! A collective between processes over TCP: one connection for every pair of ranks.
//!
//! Rank r connects to the ranks below it and accepts those above it. Both ends of a connection
//! prove with HMAC-SHA256 that they know the secret of the epoch, over fresh nonces of both; the
//! secret itself is never sent. A frame is a header (epoch, sequence number, length in bytes; little
//! endian) and `f32` values; whatever differs from what this rank expects ends the group, and
//! nothing is ever allocated because a peer says so.

mod handshake;
mod link;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use self::{handshake::Identity, link::Link};
use super::{Abort, Collective, abort::ended};
use crate::{Error, Result, ops::Device};

/// How long a connection may take to prove itself.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// Connections that may be proving themselves at once; more are closed unheard.
const HANDSHAKES: usize = 32;
/// How often a listener is looked at while ranks are missing.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(2);

/// A rank's place in one epoch of a group.
#[derive(Clone)]
pub struct NetConfig {
    /// The epoch.
    pub epoch: u64,
    /// Known to the ranks of the epoch only.
    pub secret: Arc<[u8]>,
    /// This rank.
    pub rank: usize,
    /// `host:port` of every rank's listener, by rank.
    pub addresses: Arc<[String]>,
    /// How long forming the group, and how long each exchange, may take.
    pub deadline: Duration,
}

impl fmt::Debug for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetConfig")
            .field("epoch", &self.epoch)
            .field("rank", &self.rank)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// Makes `stream` one of those that end with the epoch.
fn watch(stream: &TcpStream, abort: &Abort) -> Result<()> {
    let watched = stream.try_clone().map_err(lost)?;
    abort.on_abort(move || {
        // A connection that is closed already is what is wanted.
        let _ = watched.shutdown(Shutdown::Both);
    })
}

fn lost(error: std::io::Error) -> Error {
    Error::GroupLost(error.to_string())
}

/// One rank's connections to all others. Dropping it closes them, which ends the group for all.
#[derive(Debug)]
pub struct NetCollective {
    epoch: u64,
    rank: usize,
    deadline: Duration,
    /// Exchanges so far.
    sequence: u64,
    /// By rank; `None` for this one.
    links: Vec<Option<Link>>,
    mine: Vec<u8>,
    theirs: Vec<u8>,
}

impl NetCollective {
    /// Connects this rank to all others of its epoch. `listener` is bound to this rank's address.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if a rank is missing at the deadline, cannot prove that it belongs to
    /// the epoch, or if the epoch is aborted meanwhile.
    pub fn connect(listener: &TcpListener, config: &NetConfig, abort: &Abort) -> Result<Self> {
        let size = config.addresses.len();
        let overdue = Instant::now() + config.deadline;
        let mut links: Vec<Option<Link>> = (0..size).map(|_| None).collect();
        for (rank, link) in links.iter_mut().enumerate().take(config.rank) {
            *link = Some(connect(rank, config, abort, overdue)?);
        }
        accept(listener, config, abort, overdue, &mut links)?;
        Ok(Self {
            epoch: config.epoch,
            rank: config.rank,
            deadline: config.deadline,
            sequence: 0,
            links,
            mine: Vec::new(),
            theirs: Vec::new(),
        })
    }

    /// Exchanges `mine` for the values of every other rank, which `receive` is given.
    ///
    /// In round k each rank meets rank XOR k: rounds are pairings, and the lower rank sends first,
    /// so the earliest round that any rank is in can always go on.
    fn exchange(&mut self, mine: &[f32], mut receive: impl FnMut(usize, &[f32])) -> Result<()> {
        let overdue = Instant::now() + self.deadline;
        self.mine.clear();
        self.mine.extend(self.epoch.to_le_bytes());
        self.mine.extend(self.sequence.to_le_bytes());
        self.mine.extend((size_of_val(mine) as u64).to_le_bytes());
        let header = self.mine.len();
        self.mine.extend(mine.iter().flat_map(|v| v.to_le_bytes()));
        self.theirs.resize(self.mine.len(), 0);
        let mut values = vec![0.0; mine.len()];
        for round in 1..self.links.len() {
            let peer = self.rank ^ round;
            let link = self.links.get_mut(peer).and_then(Option::as_mut);
            let link =
                link.ok_or_else(|| Error::GroupLost(format!("rank {peer} is not connected")))?;
            if self.rank < peer {
                link.write(&self.mine, overdue)?;
            }
            // The header comes first: a peer that is out of step may send less than is expected.
            let (theirs, body) = self.theirs.split_at_mut(header);
            link.read(theirs, overdue)?;
            if *theirs != self.mine[..header] {
                return Err(Error::GroupLost(format!(
                    "rank {peer} is out of step: its frame is {theirs:?}, not {:?}",
                    &self.mine[..header]
                )));
            }
            link.read(body, overdue)?;
            if self.rank > peer {
                link.write(&self.mine, overdue)?;
            }
            for (value, bytes) in values.iter_mut().zip(body.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
            receive(peer, &values);
        }
        self.sequence += 1;
        Ok(())
    }
}

impl<D: Device> Collective<D> for NetCollective {
    fn size(&self) -> usize {
        self.links.len()
    }

    fn gather(
        &mut self,
        device: &D,
        mine: &D::Buffer,
        len: usize,
        all: &mut D::Buffer,
    ) -> Result<()> {
        let values = device.read(mine, len)?;
        let mut gathered = values.repeat(self.links.len());
        self.exchange(&values, |rank, values| {
            gathered[rank * len..][..len].copy_from_slice(values);
        })?;
        device.write(&gathered, all)
    }

    fn check(&mut self) -> Result<()> {
        self.links.iter().flatten().try_for_each(Link::check)
    }
}

/// Connects to a lower rank, which may not listen yet.
fn connect(rank: usize, config: &NetConfig, abort: &Abort, overdue: Instant) -> Result<Link> {
    let address = &config.addresses[rank];
    let identity = Identity::new(config, config.rank, rank);
    loop {
        let failed = match dial(address, overdue) {
            Ok(stream) => {
                watch(&stream, abort)?;
                let mut link = Link::new(stream)?;
                identity.introduce(&mut link, overdue)?;
                return Ok(link);
            }
            Err(error) => error,
        };
        if abort.aborted() {
            return Err(ended());
        }
        if Instant::now() >= overdue {
            return Err(Error::GroupLost(format!(
                "rank {rank} at {address}: {failed}"
            )));
        }
        thread::sleep(ACCEPT_INTERVAL);
    }
}

fn dial(address: &str, overdue: Instant) -> std::io::Result<TcpStream> {
    let mut refused = std::io::Error::other("the name has no address");
    for address in address.to_socket_addrs()?.collect::<Vec<SocketAddr>>() {
        let left = overdue.saturating_duration_since(Instant::now());
        let left = left.clamp(Duration::from_millis(1), HANDSHAKE);
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Accepts all higher ranks. Connections prove themselves side by side, so that one that says
/// nothing keeps nobody out.
fn accept(
    listener: &TcpListener,
    config: &NetConfig,
    abort: &Abort,
    overdue: Instant,
    links: &mut [Option<Link>],
) -> Result<()> {
    listener.set_nonblocking(true).map_err(lost)?;
    let (proven, arrivals) = mpsc::channel::<Option<(usize, Link)>>();
    thread::scope(|scope| {
        let mut proving: usize = 0;
        while links.iter().skip(config.rank + 1).any(Option::is_none) {
            if abort.aborted() {
                return Err(ended());
            }
            if Instant::now() >= overdue {
                let missing = (config.rank + 1..links.len()).filter(|&rank| links[rank].is_none());
                let missing: Vec<_> = missing.collect();
                return Err(Error::GroupLost(format!(
                    "ranks {missing:?} did not connect to rank {}",
                    config.rank
                )));
            }
            for arrival in arrivals.try_iter() {
                proving -= 1;
                if let Some((rank, link)) = arrival
                    && let Some(place @ None) = links.get_mut(rank)
                {
                    *place = Some(link);
                }
            }
            match listener.accept() {
                Ok((stream, from)) if proving < HANDSHAKES => {
                    proving += 1;
                    let proven = proven.clone();
                    scope.spawn(move || {
                        let until = overdue.min(Instant::now() + HANDSHAKE);
                        let arrival = welcome(stream, config, abort, until).inspect_err(
                            |error| tracing::warn!(%from, %error, "connection refused"),
                        );
                        // The receiver outlives the scope.
                        let _ = proven.send(arrival.ok());
                    });
                }
                Ok((stream, _)) => drop(stream),
                Err(_) => thread::sleep(ACCEPT_INTERVAL),
            }
        }
        Ok(())
    })
}

fn welcome(
    stream: TcpStream,
    config: &NetConfig,
    abort: &Abort,
    overdue: Instant,
) -> Result<(usize, Link)> {
    stream.set_nonblocking(false).map_err(lost)?;
    watch(&stream, abort)?;
    let mut link = Link::new(stream)?;
    let rank = handshake::welcome(config, &mut link, overdue)?;
    Ok((rank, link))
}
