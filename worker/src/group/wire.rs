//! Frames between leader and follower, from and to their messages.

use std::sync::Arc;

use xomni_proto::worker::{self as proto, follower_frame, leader_frame};

use crate::{
    backbone::{OutputId, TracedOutput, Traces},
    telemetry::TraceParent,
};

use super::{
    epoch::{Formation, Member, ToFollower, ToLeader},
    plan::{self, PlanReader},
};

/// A message that no peer of this protocol sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    /// A frame without content that is known.
    #[error("an empty or unknown frame")]
    Empty,
    /// Ranks that are no range.
    #[error("ranks {0} + {1} are too many")]
    Ranks(u32, u32),
    /// A plan before the group has formed.
    #[error("a plan before the group has formed")]
    EarlyPlan,
    /// A plan that cannot be run.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
}

pub(super) fn follower_frame(epoch: u64, frame: ToLeader) -> proto::FollowerFrame {
    use follower_frame::Frame;
    let frame = match frame {
        ToLeader::Join {
            group,
            secret,
            member,
        } => Frame::Join(proto::Join {
            protocol_version: member.protocol_version,
            group,
            secret: secret.into(),
            first_rank: member.ranks.start,
            ranks: member.ranks.len() as u32,
            fingerprint: member.fingerprint,
            collective: member.collective,
            blocks: member.blocks,
        }),
        ToLeader::Ready => Frame::Ready(proto::Ready {}),
        ToLeader::Done { step, hash } => Frame::Done(proto::StepDone { step, hash }),
        ToLeader::Heartbeat => Frame::Heartbeat(proto::Heartbeat {}),
        ToLeader::Leave => Frame::Leave(proto::Leave {
            reason: "stopping".into(),
        }),
    };
    proto::FollowerFrame {
        epoch,
        frame: Some(frame),
    }
}

pub(super) fn read_follower_frame(
    frame: proto::FollowerFrame,
) -> Result<(u64, ToLeader), WireError> {
    use follower_frame::Frame;
    let content = match frame.frame.ok_or(WireError::Empty)? {
        Frame::Join(join) => {
            let (first, count) = (join.first_rank, join.ranks);
            let end = first
                .checked_add(count)
                .ok_or(WireError::Ranks(first, count))?;
            ToLeader::Join {
                group: join.group,
                secret: join.secret.into(),
                member: Member {
                    protocol_version: join.protocol_version,
                    ranks: first..end,
                    fingerprint: join.fingerprint,
                    collective: join.collective,
                    blocks: join.blocks,
                },
            }
        }
        Frame::Ready(_) => ToLeader::Ready,
        Frame::Done(done) => ToLeader::Done {
            step: done.step,
            hash: done.hash,
        },
        Frame::Heartbeat(_) => ToLeader::Heartbeat,
        Frame::Leave(_) => ToLeader::Leave,
    };
    Ok((frame.epoch, content))
}

pub(super) fn leader_frame(epoch: u64, frame: ToFollower) -> proto::LeaderFrame {
    use leader_frame::Frame;
    let frame = match frame {
        ToFollower::Form(formation) => Frame::Form(proto::Form {
            collective: formation.collective.to_vec(),
            blocks: formation.blocks,
        }),
        ToFollower::Plan(step) => Frame::Plan(plan::write(&step)),
        ToFollower::Trace(traces) => Frame::Traces(write_traces(&traces)),
        ToFollower::Heartbeat => Frame::Heartbeat(proto::Heartbeat {}),
        ToFollower::Leave(reason) => Frame::Leave(proto::Leave { reason }),
    };
    proto::LeaderFrame {
        epoch,
        frame: Some(frame),
    }
}

/// `plans` reads the plans of the epoch; there is none before the group has formed.
pub(super) fn read_leader_frame(
    frame: proto::LeaderFrame,
    plans: Option<&mut PlanReader>,
) -> Result<(u64, ToFollower), WireError> {
    use leader_frame::Frame;
    let content = match frame.frame.ok_or(WireError::Empty)? {
        Frame::Form(form) => ToFollower::Form(Formation {
            collective: form.collective.into(),
            blocks: form.blocks,
        }),
        Frame::Plan(plan) => {
            let plans = plans.ok_or(WireError::EarlyPlan)?;
            ToFollower::Plan(Arc::new(plans.read(&plan)?))
        }
        Frame::Traces(traces) => ToFollower::Trace(Arc::new(read_traces(traces))),
        Frame::Heartbeat(_) => ToFollower::Heartbeat,
        Frame::Leave(leave) => ToFollower::Leave(leave.reason),
    };
    Ok((frame.epoch, content))
}

fn write_traces(traces: &Traces) -> proto::Traces {
    let id = |&(request, output): &OutputId| proto::OutputId {
        request,
        output: output as u32,
    };
    let begun = |output: &TracedOutput| proto::TracedOutput {
        id: Some(id(&output.id)),
        image_index: output.image_index,
        traceparent: output.parent.as_str().to_owned(),
    };
    proto::Traces {
        begun: traces.begun.iter().map(begun).collect(),
        ended: traces.ended.iter().map(id).collect(),
    }
}

fn read_traces(traces: proto::Traces) -> Traces {
    let id = |id: proto::OutputId| (id.request, id.output as usize);
    let begun = |output: proto::TracedOutput| {
        Some(TracedOutput {
            id: output.id.map(id)?,
            image_index: output.image_index,
            parent: TraceParent::parse(&output.traceparent)?,
        })
    };
    Traces {
        begun: traces.begun.into_iter().filter_map(begun).collect(),
        ended: traces.ended.into_iter().map(id).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn traces_arrive_but_for_those_that_are_none() {
        let output = |output, parent: &str| {
            Some(TracedOutput {
                id: (u64::MAX, output),
                image_index: 3,
                parent: TraceParent::parse(parent)?,
            })
        };
        let traces = Traces {
            begun: output(1, PARENT).into_iter().collect(),
            ended: vec![(7, 0), (8, 2)],
        };
        assert_eq!(traces.begun.len(), 1);
        let mut message = write_traces(&traces);
        let mut unreadable = message.begun[0].clone();
        unreadable.traceparent = "00-zz".into();
        let nameless = proto::TracedOutput {
            id: None,
            ..message.begun[0].clone()
        };
        message.begun.extend([unreadable, nameless]);
        assert_eq!(read_traces(message), traces);
    }
}
