//! The connections of a leader's followers in one epoch.

use std::{collections::HashMap, time::Instant};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use xomni_proto::worker::{FollowerFrame, LeaderFrame, ranks_server::Ranks};

use crate::group::{
    epoch::{LeaderEpoch, Refusal, ToFollower, ToLeader},
    wire,
};

/// Frames that a follower may leave unread before it is lost: many seconds of heartbeats, and more
/// steps than are ever planned ahead.
const FRAMES: usize = 64;
/// Connections that may be open in an epoch before their first frame.
const STRANGERS: usize = 64;

/// A connection of a follower.
#[derive(Debug)]
pub struct Arrival {
    frames: Streaming<FollowerFrame>,
    replies: mpsc::Sender<Result<LeaderFrame, Status>>,
}

/// `Ranks.Follow`: hands every connection to the leader.
#[derive(Debug)]
pub struct RanksService {
    arrivals: mpsc::Sender<Arrival>,
}

impl RanksService {
    pub(super) fn new(arrivals: mpsc::Sender<Arrival>) -> Self {
        Self { arrivals }
    }
}

#[tonic::async_trait]
impl Ranks for RanksService {
    type FollowStream = ReceiverStream<Result<LeaderFrame, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowerFrame>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (replies, stream) = mpsc::channel(FRAMES);
        let arrival = Arrival {
            frames: request.into_inner(),
            replies,
        };
        match self.arrivals.try_send(arrival) {
            Ok(()) => Ok(Response::new(ReceiverStream::new(stream))),
            Err(_) => Err(Status::unavailable("no epoch forms here")),
        }
    }
}

/// What a connection says.
#[derive(Debug)]
pub(super) enum PeerEvent {
    /// A frame of an epoch.
    Frame(u64, u64, ToLeader),
    /// It has ended, or broken the protocol; what it is told of that.
    Gone(u64, Status),
}

#[derive(Debug)]
struct Peer {
    replies: mpsc::Sender<Result<LeaderFrame, Status>>,
    reader: AbortHandle,
    joined: bool,
}

/// The connections of an epoch. Dropping it ends them, after what was sent to them.
#[derive(Debug)]
pub(super) struct Peers<E> {
    epoch: u64,
    events: mpsc::Sender<E>,
    next: u64,
    peers: HashMap<u64, Peer>,
    readers: JoinSet<()>,
}

impl<E: From<PeerEvent> + Send + 'static> Peers<E> {
    pub fn new(epoch: u64, events: mpsc::Sender<E>) -> Self {
        Self {
            epoch,
            events,
            next: 0,
            peers: HashMap::new(),
            readers: JoinSet::new(),
        }
    }

    /// A connection that has not said anything yet.
    pub fn arrive(&mut self, arrival: Arrival) {
        let strangers = self.peers.values().filter(|peer| !peer.joined).count();
        if strangers >= STRANGERS {
            return; // Dropping it tells the caller.
        }
        while self.readers.try_join_next().is_some() {}
        let id = self.next;
        self.next += 1;
        let reader = self
            .readers
            .spawn(read(id, arrival.frames, self.events.clone()));
        let peer = Peer {
            replies: arrival.replies,
            reader,
            joined: false,
        };
        self.peers.insert(id, peer);
    }

    pub fn on_event(&mut self, event: PeerEvent, epoch: &mut LeaderEpoch, now: Instant) {
        match event {
            PeerEvent::Frame(id, number, frame) => {
                let Some(peer) = self.peers.get_mut(&id) else {
                    return;
                };
                if peer.joined {
                    return epoch.frame(now, id, number, frame);
                }
                match epoch.join(now, id, number, frame) {
                    Ok(()) => peer.joined = true,
                    Err(refusal) => self.refuse(id, &refusal),
                }
            }
            PeerEvent::Gone(id, status) => {
                epoch.gone(id, status.message());
                if let Some(peer) = self.peers.remove(&id) {
                    // One that is gone needs no answer.
                    let _ = peer.replies.try_send(Err(status));
                }
            }
        }
    }

    fn refuse(&mut self, id: u64, refusal: &Refusal) {
        tracing::warn!(%refusal, "follower refused");
        if let Some(peer) = self.peers.remove(&id) {
            let status = match refusal {
                Refusal::Secret => Status::permission_denied(refusal.to_string()),
                Refusal::Epoch { .. } | Refusal::Mismatch(_) => {
                    Status::failed_precondition(refusal.to_string())
                }
            };
            // The first frame of an empty channel; one that is gone needs no answer.
            let _ = peer.replies.try_send(Err(status));
            peer.reader.abort();
        }
    }

    /// Sends a frame. One that does not fit, because its follower reads nothing, is dropped: the
    /// follower is silent then as well, or finds a step missing.
    pub fn send(&self, id: u64, frame: ToFollower) {
        if let Some(peer) = self.peers.get(&id) {
            let frame = wire::leader_frame(self.epoch, frame);
            if peer.replies.try_send(Ok(frame)).is_err() {
                tracing::debug!(peer = id, "a follower reads nothing");
            }
        }
    }
}

/// Reads a connection to its end.
async fn read<E: From<PeerEvent>>(
    id: u64,
    mut frames: Streaming<FollowerFrame>,
    events: mpsc::Sender<E>,
) {
    loop {
        let event = match frames.next().await {
            Some(Ok(frame)) => match wire::read_follower_frame(frame) {
                Ok((epoch, frame)) => PeerEvent::Frame(id, epoch, frame),
                Err(error) => PeerEvent::Gone(id, Status::invalid_argument(error.to_string())),
            },
            Some(Err(status)) => PeerEvent::Gone(id, status),
            None => PeerEvent::Gone(id, Status::cancelled("the stream has ended")),
        };
        let last = matches!(event, PeerEvent::Gone(..));
        if events.send(event.into()).await.is_err() || last {
            return;
        }
    }
}
