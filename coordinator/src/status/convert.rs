//! The status as `xomni.v1` has it, and back.

use xomni_cluster::record::{Load, WorkerState};
use xomni_engine::{Error, Result};
use xomni_proto::cluster as wire;

use super::{
    ClusterStatus, CoordinatorState, CoordinatorStatus, DecoderStatus, GroupStatus,
    MembershipStatus, RankStatus,
};

impl From<ClusterStatus> for wire::ClusterStatus {
    fn from(status: ClusterStatus) -> Self {
        Self {
            model: status.model,
            protocol_version: status.protocol_version,
            coordinator: Some(status.coordinator.into()),
            membership: Some(wire::MembershipStatus {
                current: status.membership.current,
                since_seconds: status.membership.since_seconds,
            }),
            groups: status.groups.into_iter().map(Into::into).collect(),
            decoders: status.decoders.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::ClusterStatus> for ClusterStatus {
    type Error = Error;

    /// # Errors
    /// [`Error::WorkerLost`] for a status that lacks a part or has an unknown state.
    fn try_from(status: wire::ClusterStatus) -> Result<Self> {
        let coordinator = status.coordinator.ok_or_else(|| lacks("coordinator"))?;
        let membership = status.membership.ok_or_else(|| lacks("membership"))?;
        let groups = status.groups.into_iter().map(TryFrom::try_from);
        let decoders = status.decoders.into_iter().map(TryFrom::try_from);
        Ok(Self {
            model: status.model,
            protocol_version: status.protocol_version,
            coordinator: coordinator.try_into()?,
            membership: MembershipStatus {
                current: membership.current,
                since_seconds: membership.since_seconds,
            },
            groups: groups.collect::<Result<_>>()?,
            decoders: decoders.collect::<Result<_>>()?,
        })
    }
}

impl From<CoordinatorStatus> for wire::CoordinatorStatus {
    fn from(status: CoordinatorStatus) -> Self {
        let state = match status.state {
            CoordinatorState::Serving => wire::CoordinatorState::Serving,
            CoordinatorState::Draining => wire::CoordinatorState::Draining,
        };
        Self {
            version: status.version,
            state: state.into(),
            uptime_seconds: status.uptime_seconds,
            in_flight: status.in_flight,
            in_flight_capacity: status.in_flight_capacity,
            waiting: status.waiting,
            waiting_capacity: status.waiting_capacity,
            backlog_tokens: status.backlog_tokens,
        }
    }
}

impl TryFrom<wire::CoordinatorStatus> for CoordinatorStatus {
    type Error = Error;

    fn try_from(status: wire::CoordinatorStatus) -> Result<Self> {
        let state = match status.state() {
            wire::CoordinatorState::Serving => CoordinatorState::Serving,
            wire::CoordinatorState::Draining => CoordinatorState::Draining,
            wire::CoordinatorState::Unspecified => return Err(lacks("state of the coordinator")),
        };
        Ok(Self {
            version: status.version,
            state,
            uptime_seconds: status.uptime_seconds,
            in_flight: status.in_flight,
            in_flight_capacity: status.in_flight_capacity,
            waiting: status.waiting,
            waiting_capacity: status.waiting_capacity,
            backlog_tokens: status.backlog_tokens,
        })
    }
}

impl From<GroupStatus> for wire::GroupStatus {
    fn from(group: GroupStatus) -> Self {
        Self {
            id: group.id,
            model: group.model,
            state: wire_state(group.state).into(),
            since_seconds: group.since_seconds,
            epoch: group.epoch,
            tp: group.tp,
            ranks_present: group.ranks_present,
            fingerprint: group.fingerprint,
            protocol_version: group.protocol_version,
            takes_work: group.takes_work,
            outstanding: group.outstanding,
            load: Some(wire_load(group.load)),
            processes: group.processes.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::GroupStatus> for GroupStatus {
    type Error = Error;

    fn try_from(group: wire::GroupStatus) -> Result<Self> {
        let state = state(group.state())?;
        let processes = group.processes.into_iter().map(TryFrom::try_from);
        Ok(Self {
            id: group.id,
            model: group.model,
            state,
            since_seconds: group.since_seconds,
            epoch: group.epoch,
            tp: group.tp,
            ranks_present: group.ranks_present,
            fingerprint: group.fingerprint,
            protocol_version: group.protocol_version,
            takes_work: group.takes_work,
            outstanding: group.outstanding,
            load: load(group.load)?,
            processes: processes.collect::<Result<_>>()?,
        })
    }
}

impl From<RankStatus> for wire::RankStatus {
    fn from(process: RankStatus) -> Self {
        Self {
            id: process.id,
            address: process.address,
            first_rank: process.first_rank,
            ranks: process.ranks,
            state: wire_state(process.state).into(),
            since_seconds: process.since_seconds,
            epoch: process.epoch,
        }
    }
}

impl TryFrom<wire::RankStatus> for RankStatus {
    type Error = Error;

    fn try_from(process: wire::RankStatus) -> Result<Self> {
        let state = state(process.state())?;
        Ok(Self {
            id: process.id,
            address: process.address,
            first_rank: process.first_rank,
            ranks: process.ranks,
            state,
            since_seconds: process.since_seconds,
            epoch: process.epoch,
        })
    }
}

impl From<DecoderStatus> for wire::DecoderStatus {
    fn from(decoder: DecoderStatus) -> Self {
        Self {
            id: decoder.id,
            address: decoder.address,
            model: decoder.model,
            state: wire_state(decoder.state).into(),
            since_seconds: decoder.since_seconds,
            fingerprint: decoder.fingerprint,
            protocol_version: decoder.protocol_version,
            takes_work: decoder.takes_work,
            outstanding: decoder.outstanding,
            load: Some(wire_load(decoder.load)),
        }
    }
}

impl TryFrom<wire::DecoderStatus> for DecoderStatus {
    type Error = Error;

    fn try_from(decoder: wire::DecoderStatus) -> Result<Self> {
        let state = state(decoder.state())?;
        Ok(Self {
            id: decoder.id,
            address: decoder.address,
            model: decoder.model,
            state,
            since_seconds: decoder.since_seconds,
            fingerprint: decoder.fingerprint,
            protocol_version: decoder.protocol_version,
            takes_work: decoder.takes_work,
            outstanding: decoder.outstanding,
            load: load(decoder.load)?,
        })
    }
}

fn wire_state(state: WorkerState) -> wire::WorkerState {
    match state {
        WorkerState::Forming => wire::WorkerState::Forming,
        WorkerState::Ready => wire::WorkerState::Ready,
        WorkerState::Draining => wire::WorkerState::Draining,
    }
}

fn state(state: wire::WorkerState) -> Result<WorkerState> {
    match state {
        wire::WorkerState::Forming => Ok(WorkerState::Forming),
        wire::WorkerState::Ready => Ok(WorkerState::Ready),
        wire::WorkerState::Draining => Ok(WorkerState::Draining),
        wire::WorkerState::Unspecified => Err(lacks("state of a worker")),
    }
}

fn wire_load(load: Load) -> wire::WorkerLoad {
    wire::WorkerLoad {
        queue_capacity: load.queue_capacity,
        queued: load.queued,
        running: load.running,
        backlog: load.backlog,
        rate: load.rate,
        kv_blocks: load.kv_blocks,
        kv_blocks_free: load.kv_blocks_free,
    }
}

fn load(load: Option<wire::WorkerLoad>) -> Result<Load> {
    let load = load.ok_or_else(|| lacks("load of a worker"))?;
    Ok(Load {
        queue_capacity: load.queue_capacity,
        queued: load.queued,
        running: load.running,
        backlog: load.backlog,
        rate: load.rate,
        kv_blocks: load.kv_blocks,
        kv_blocks_free: load.kv_blocks_free,
    })
}

fn lacks(part: &str) -> Error {
    Error::worker_lost("status", format!("it does not tell the {part}"))
}
