//! Lists and watches keys of etcd on behalf of a [`Mirror`], for ever.

use std::sync::Arc;

use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::watch::Sender;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::error::ClusterError;
use crate::etcd::Members;
use crate::mirror::{Change, Entry, Event, Mirror, Plan};

/// What is watched.
#[derive(Debug)]
pub(crate) enum Range {
    /// One key.
    Key(String),
    /// All keys that begin so.
    Folder(String),
}

/// Drives a mirror and publishes its `view` whenever that may have changed. Ends when nobody
/// listens any more.
pub(crate) async fn follow<R, V>(
    members: Arc<Members>,
    range: Range,
    mirror: Mirror<R>,
    view: impl Fn(&Mirror<R>) -> V,
    sender: Sender<V>,
) {
    let listeners = sender.clone();
    let mut follower = Follower {
        members,
        range,
        mirror,
        view,
        sender,
        away: false,
    };
    tokio::select! {
        () = follower.run() => {}
        () = listeners.closed() => {}
    }
}

struct Follower<R, V, F> {
    members: Arc<Members>,
    range: Range,
    mirror: Mirror<R>,
    view: F,
    sender: Sender<V>,
    /// Whether etcd did not answer last time; said once an outage.
    away: bool,
}

impl<R, V, F: Fn(&Mirror<R>) -> V> Follower<R, V, F> {
    async fn run(&mut self) {
        let mut backoff = Backoff::new();
        loop {
            let result = match self.mirror.plan() {
                Plan::List => self.list().await,
                Plan::Watch { from } => match self.open(from).await {
                    Ok((stream, first)) => {
                        backoff.reset();
                        self.watch(stream, first).await
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = result {
                self.apply(Event::Disconnected);
                if !self.away {
                    warn!(watching = ?self.range, %error, "watch waits for etcd");
                    self.away = true;
                }
                backoff.wait().await;
            }
        }
    }

    async fn list(&mut self) -> Result<(), ClusterError> {
        let (key, options) = match &self.range {
            Range::Key(key) => (key.as_str(), GetOptions::new()),
            Range::Folder(prefix) => (prefix.as_str(), GetOptions::new().with_prefix()),
        };
        let answer = self
            .members
            .call(|mut client| async move { client.get(key, Some(options)).await })
            .await?;
        let revision = answer.header().map_or(0, |header| header.revision());
        let entries = answer.kvs().iter().map(entry).collect();
        self.apply(Event::Snapshot { revision, entries });
        Ok(())
    }

    /// A watch and the first that it sends.
    async fn open(
        &mut self,
        from: i64,
    ) -> Result<(WatchStream, Option<WatchResponse>), ClusterError> {
        let options = WatchOptions::new().with_start_revision(from);
        let (key, options) = match &self.range {
            Range::Key(key) => (key.as_str(), options),
            Range::Folder(prefix) => (prefix.as_str(), options.with_prefix()),
        };
        let open = self.members.call(|mut client| async move {
            let mut stream = client.watch(key, Some(options)).await?;
            let first = stream.message().await?;
            Ok((stream, first))
        });
        open.await
    }

    /// Until the watch is to be planned anew (`Ok`), or is lost.
    async fn watch(
        &mut self,
        mut stream: WatchStream,
        mut answer: Option<WatchResponse>,
    ) -> Result<(), ClusterError> {
        while let Some(response) = answer {
            if response.canceled() {
                if response.compact_revision() > 0 {
                    info!(watching = ?self.range, "missed changes are compacted, listing anew");
                    self.apply(Event::Compacted);
                    return Ok(());
                }
                return Err(ended(response.cancel_reason()));
            }
            self.apply(event(&response));
            if self.mirror.plan() == Plan::List {
                return Ok(());
            }
            if self.away {
                info!(watching = ?self.range, "watching again");
                self.away = false;
            }
            answer = stream.message().await?;
        }
        Err(ended("end of stream"))
    }

    fn apply(&mut self, event: Event) {
        let outcome = self.mirror.apply(event);
        for unreadable in outcome.unreadable {
            warn!(
                key = unreadable.key,
                reason = unreadable.reason,
                "unreadable record ignored"
            );
        }
        if outcome.changed {
            self.sender.send_replace((self.view)(&self.mirror));
        }
    }
}

fn event(response: &WatchResponse) -> Event {
    if response.created() {
        return Event::Opened {
            revision: response.header().map_or(0, |header| header.revision()),
        };
    }
    let changes = response.events().iter().filter_map(|event| {
        let changed = entry(event.kv()?);
        Some(match event.event_type() {
            EventType::Put => Change::Put(changed),
            EventType::Delete => Change::Delete {
                key: changed.key,
                mod_revision: changed.mod_revision,
            },
        })
    });
    Event::Changes(changes.collect())
}

fn entry(pair: &etcd_client::KeyValue) -> Entry {
    Entry {
        key: String::from_utf8_lossy(pair.key()).into_owned(),
        value: pair.value().to_vec(),
        mod_revision: pair.mod_revision(),
    }
}

fn ended(reason: &str) -> ClusterError {
    etcd_client::Error::WatchError(reason.to_owned()).into()
}
