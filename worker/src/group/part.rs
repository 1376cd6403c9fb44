//! The part of a group that a process hosts.

use std::{
    io,
    net::{IpAddr, TcpListener},
    sync::Arc,
};

use tokio::sync::watch;
use xomni_cluster::record::{EpochRecord, Load, WorkerState};
use xomni_engine::{
    Error, Result,
    group::{Connection, ThreadGroup},
    parallel::{Abort, NetConfig},
};
use xomni_proto::PROTOCOL_VERSION;

use super::{
    epoch::{EpochId, Formation, Member, STEP},
    meter::{GroupMeter, StepTimer},
    plan::PlanLimits,
    spans::RankSpans,
};
use crate::convert::Standing;

/// Some ranks of a group, and what they say of themselves in every epoch.
#[derive(Debug)]
pub struct Part {
    /// The group.
    pub group: String,
    /// Ranks of the group.
    pub size: u32,
    /// The ranks of this process, with their weights.
    pub ranks: Arc<ThreadGroup>,
    /// What determines their results.
    pub fingerprint: String,
    /// What they have room for.
    pub limits: PlanLimits,
    /// Address at which they accept other ranks.
    pub listen: IpAddr,
    /// Host under which other ranks reach that address.
    pub host: String,
    /// What they count.
    pub meter: GroupMeter,
    /// How the process stands, for whoever asks.
    pub standing: watch::Sender<Standing>,
}

impl Part {
    /// The epoch of a record, this process as a member of it, and a listener for each of its ranks.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a group of another size, [`Error::GroupLost`] without a port.
    pub(super) fn join(&self, record: &EpochRecord) -> Result<(EpochId, Member, Vec<TcpListener>)> {
        let id = self.epoch(record)?;
        let no_port = |error| Error::GroupLost(format!("no port: {error}"));
        let (member, listeners) = self.member().map_err(no_port)?;
        Ok((id, member, listeners))
    }

    /// The process stands so from now on, and holds nothing.
    pub(super) fn stand(&self, epoch: u64, state: WorkerState) {
        let load = Load::default();
        self.standing.send_replace(Standing { epoch, state, load });
    }

    fn member(&self) -> io::Result<(Member, Vec<TcpListener>)> {
        let ranks = self.ranks.ranks();
        let mut listeners = Vec::new();
        let mut collective = Vec::new();
        for _ in ranks.clone() {
            let listener = TcpListener::bind((self.listen, 0))?;
            let port = listener.local_addr()?.port();
            collective.push(authority(&self.host, port));
            listeners.push(listener);
        }
        let member = Member {
            protocol_version: PROTOCOL_VERSION,
            ranks: ranks.start as u32..ranks.end as u32,
            fingerprint: self.fingerprint.clone(),
            collective,
            blocks: u32::try_from(self.limits.blocks).unwrap_or(u32::MAX),
        };
        Ok((member, listeners))
    }

    /// Connects the ranks of this process to all others of an epoch. Blocks.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if a rank cannot be reached in time, or `abort` is called.
    pub(super) fn connect(
        &self,
        id: &EpochId,
        formation: &Formation,
        listeners: Vec<TcpListener>,
        abort: &Abort,
    ) -> Result<()> {
        let ranks = self.ranks.ranks();
        let connections = if ranks.len() == self.size as usize {
            Connection::local(ranks.len(), abort)
        } else {
            let net = |(rank, listener)| Connection::Net {
                listener,
                config: NetConfig {
                    epoch: id.number,
                    secret: id.secret.clone(),
                    rank,
                    addresses: formation.collective.clone(),
                    deadline: STEP,
                },
                abort: abort.clone(),
            };
            ranks.zip(listeners).map(net).collect()
        };
        self.ranks.reset(connections)
    }

    /// The spans of its ranks in an epoch that begins.
    pub(super) fn spans(&self) -> RankSpans {
        RankSpans::new(self.ranks.ranks(), self.limits.max_sequences)
    }

    /// Times the steps of an epoch that begins.
    pub(super) fn timer(&self) -> StepTimer {
        StepTimer::new(self.meter.clone())
    }

    /// The limits of plans where every member has room for `blocks` blocks.
    pub(super) fn plan_limits(&self, blocks: u32) -> PlanLimits {
        PlanLimits {
            blocks: blocks as usize,
            ..self.limits
        }
    }

    /// The epoch that a record of this group describes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a group of another size.
    fn epoch(&self, record: &EpochRecord) -> Result<EpochId> {
        if record.group_size != self.size {
            return Err(Error::Unsupported {
                what: format!("group {:?} of {} ranks", self.group, record.group_size),
                reason: format!("this process was started for {} ranks", self.size),
            });
        }
        Ok(EpochId {
            group: self.group.clone(),
            number: record.number,
            secret: record.secret.as_bytes().into(),
            size: record.group_size,
        })
    }
}

/// `host:port`, with an IPv6 address in brackets.
pub fn authority(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}
