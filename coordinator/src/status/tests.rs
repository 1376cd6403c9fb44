use xomni_proto::{PROTOCOL_VERSION, cluster as wire};

use super::*;

pub(super) fn backbone(id: &str, first_rank: u32, ranks: u32, group_size: u32) -> WorkerRecord {
    WorkerRecord {
        id: id.into(),
        address: "127.0.0.1:1".into(),
        protocol_version: PROTOCOL_VERSION,
        model: "m".into(),
        fingerprint: "f".into(),
        state: WorkerState::Ready,
        role: Role::Backbone {
            group: "g".into(),
            first_rank,
            ranks,
            group_size,
            epoch: 3,
        },
        load: Load {
            queued: 2,
            ..Load::default()
        },
    }
}

fn of(records: impl IntoIterator<Item = WorkerRecord>) -> ClusterStatus {
    let membership = Membership::from_iter(records);
    let (groups, decoders) = workers(&membership, |record| Outlook {
        since_seconds: 1.5,
        takes_work: record.state == WorkerState::Ready,
        outstanding: 9,
    });
    ClusterStatus {
        model: "m".into(),
        protocol_version: PROTOCOL_VERSION,
        coordinator: CoordinatorStatus {
            version: "1.2.3".into(),
            state: CoordinatorState::Draining,
            uptime_seconds: 2.5,
            in_flight: 1,
            in_flight_capacity: 2,
            waiting: 3,
            waiting_capacity: 4,
            backlog_tokens: 5,
        },
        membership: MembershipStatus {
            current: membership.is_current(),
            since_seconds: 0.5,
        },
        groups,
        decoders,
    }
}

fn decoder_record() -> WorkerRecord {
    WorkerRecord {
        id: "d".into(),
        role: Role::Decoder,
        ..backbone("", 0, 1, 1)
    }
}

#[test]
fn ranks_of_a_group_are_counted_once() {
    let restarted = [
        backbone("c", 2, 2, 4),
        backbone("b", 0, 2, 4),
        backbone("a", 2, 2, 4),
    ];
    let status = of(restarted);
    let [group] = &status.groups[..] else {
        panic!("{status:?}")
    };
    assert_eq!((group.ranks_present, group.tp, group.epoch), (4, 4, 3));
    assert!(group.takes_work);
    let ids: Vec<_> = group.processes.iter().map(|p| p.id.as_str()).collect();
    assert_eq!(ids, ["b", "a", "c"]);
}

#[test]
fn the_newest_leader_tells_of_its_group() {
    let mut gone = backbone("a", 0, 1, 1);
    gone.state = WorkerState::Draining;
    let mut leads = backbone("b", 0, 1, 1);
    if let Role::Backbone { epoch, .. } = &mut leads.role {
        *epoch = 4;
    }
    let status = of([gone, leads]);
    assert_eq!(status.groups[0].state, WorkerState::Ready);
    assert_eq!(status.groups[0].epoch, 4);
}

#[test]
fn a_group_without_its_leader_forms() {
    let status = of([backbone("a", 1, 1, 2)]);
    assert_eq!(status.groups[0].state, WorkerState::Forming);
    assert_eq!(status.groups[0].ranks_present, 1);
    assert!(!status.groups[0].takes_work);
}

#[test]
fn it_crosses_the_wire_unchanged() {
    let status = of([
        backbone("a", 0, 1, 2),
        backbone("b", 1, 1, 2),
        decoder_record(),
    ]);
    let wire = wire::ClusterStatus::from(status.clone());
    assert_eq!(
        ClusterStatus::try_from(wire.clone()).expect("whole"),
        status
    );
    let mut unknown = wire.clone();
    unknown.decoders[0].state = 99;
    let mut parted = wire;
    parted.groups[0].load = None;
    for broken in [unknown, parted, wire::ClusterStatus::default()] {
        assert!(ClusterStatus::try_from(broken).is_err());
    }
}

#[test]
fn its_json_has_the_documented_shape() {
    let status = of([backbone("a", 0, 1, 1), decoder_record()]);
    let load = serde_json::json!({
        "queue_capacity": 0, "queued": 2, "running": 0, "backlog": 0, "rate": 0.0,
        "kv_blocks": 0, "kv_blocks_free": 0,
    });
    let expected = serde_json::json!({
        "model": "m",
        "protocol_version": PROTOCOL_VERSION,
        "coordinator": {
            "version": "1.2.3", "state": "draining", "uptime_seconds": 2.5,
            "in_flight": 1, "in_flight_capacity": 2, "waiting": 3, "waiting_capacity": 4,
            "backlog_tokens": 5,
        },
        "membership": { "current": true, "since_seconds": 0.5 },
        "groups": [{
            "id": "g", "model": "m", "state": "ready", "since_seconds": 1.5, "epoch": 3, "tp": 1,
            "ranks_present": 1, "fingerprint": "f", "protocol_version": PROTOCOL_VERSION,
            "takes_work": true, "outstanding": 9, "load": load,
            "processes": [{
                "id": "a", "address": "127.0.0.1:1", "first_rank": 0, "ranks": 1,
                "state": "ready", "since_seconds": 1.5, "epoch": 3,
            }],
        }],
        "decoders": [{
            "id": "d", "address": "127.0.0.1:1", "model": "m", "state": "ready",
            "since_seconds": 1.5, "fingerprint": "f", "protocol_version": PROTOCOL_VERSION,
            "takes_work": true, "outstanding": 9, "load": load,
        }],
    });
    assert_eq!(serde_json::to_value(&status).expect("JSON"), expected);
}
