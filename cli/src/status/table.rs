//! A status as text that fits a terminal.

use std::fmt::Write;

use xomni_cluster::record::{Load, WorkerState};
use xomni_coordinator::status::{
    ClusterStatus, CoordinatorState, DecoderStatus, GroupStatus, RankStatus,
};

const GROUPS: [&str; 10] = [
    "GROUP",
    "STATE",
    "FOR",
    "EPOCH",
    "RANKS",
    "RUNNING",
    "QUEUE",
    "ROWS LEFT",
    "ROWS/S",
    "KV FREE",
];
const RANKS: [&str; 7] = ["GROUP", "RANKS", "STATE", "FOR", "EPOCH", "ADDRESS", "ID"];
const DECODERS: [&str; 8] = [
    "DECODER",
    "STATE",
    "FOR",
    "RUNNING",
    "QUEUE",
    "STEPS LEFT",
    "STEPS/S",
    "ADDRESS",
];

/// The whole status: the coordinator, then a table of groups, of their ranks, and of decoders.
pub fn text(status: &ClusterStatus) -> String {
    let groups = status.groups.iter().map(group);
    let ranks = status.groups.iter().flat_map(|group| {
        let of_group = |process| rank(&group.id, process);
        group.processes.iter().map(of_group)
    });
    let decoders = status.decoders.iter().map(decoder);
    [
        head(status),
        table(GROUPS, groups.collect()),
        table(RANKS, ranks.collect()),
        table(DECODERS, decoders.collect()),
    ]
    .join("\n")
}

fn head(status: &ClusterStatus) -> String {
    let coordinator = &status.coordinator;
    let state = match coordinator.state {
        CoordinatorState::Serving => "serving",
        CoordinatorState::Draining => "draining",
    };
    let known = match status.membership.current {
        true => "connected for",
        false => "not reached, workers as last seen; for",
    };
    let rows = [
        ["model".into(), status.model.clone()],
        [
            "coordinator".into(),
            format!(
                "{state} for {}, version {}, protocol {}",
                duration(coordinator.uptime_seconds),
                coordinator.version,
                status.protocol_version
            ),
        ],
        [
            "requests".into(),
            format!(
                "{} of {} in flight, {} of {} waiting, {} tokens left",
                coordinator.in_flight,
                coordinator.in_flight_capacity,
                coordinator.waiting,
                coordinator.waiting_capacity,
                coordinator.backlog_tokens
            ),
        ],
        [
            "etcd".into(),
            format!("{known} {}", duration(status.membership.since_seconds)),
        ],
    ];
    lines(&rows)
}

fn group(group: &GroupStatus) -> [String; 10] {
    [
        group.id.clone(),
        state(group.state, group.takes_work),
        duration(group.since_seconds),
        group.epoch.to_string(),
        format!("{}/{}", group.ranks_present, group.tp),
        group.load.running.to_string(),
        queue(&group.load),
        group.load.backlog.to_string(),
        rate(&group.load),
        format!("{}/{}", group.load.kv_blocks_free, group.load.kv_blocks),
    ]
}

fn rank(group: &str, process: &RankStatus) -> [String; 7] {
    let last = process.first_rank + process.ranks.saturating_sub(1);
    let ranks = match process.ranks {
        1 => process.first_rank.to_string(),
        _ => format!("{}-{last}", process.first_rank),
    };
    [
        group.to_owned(),
        ranks,
        state(process.state, true),
        duration(process.since_seconds),
        process.epoch.to_string(),
        process.address.clone(),
        process.id.clone(),
    ]
}

fn decoder(decoder: &DecoderStatus) -> [String; 8] {
    [
        decoder.id.clone(),
        state(decoder.state, decoder.takes_work),
        duration(decoder.since_seconds),
        decoder.load.running.to_string(),
        queue(&decoder.load),
        decoder.load.backlog.to_string(),
        rate(&decoder.load),
        decoder.address.clone(),
    ]
}

/// A worker that is ready and gets no work (another model or protocol, or a recent failure) is
/// told apart.
fn state(state: WorkerState, takes_work: bool) -> String {
    match (state, takes_work) {
        (WorkerState::Forming, _) => "forming",
        (WorkerState::Ready, true) => "ready",
        (WorkerState::Ready, false) => "avoided",
        (WorkerState::Draining, _) => "draining",
    }
    .into()
}

fn queue(load: &Load) -> String {
    format!("{}/{}", load.queued, load.queue_capacity)
}

fn rate(load: &Load) -> String {
    match load.rate > 0.0 {
        true => format!("{:.1}", load.rate),
        false => "-".into(),
    }
}

/// Two units are enough.
fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let (days, hours) = (whole / 86_400, whole / 3600 % 24);
    let (minutes, seconds) = (whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{seconds}s"),
        (0, _, _) => format!("{hours}h{minutes}m"),
        (_, _, _) => format!("{days}d{hours}h"),
    }
}

fn table<const N: usize>(names: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut all = vec![names.map(str::to_owned)];
    match rows.is_empty() {
        true => format!("{}: none\n", names[0].to_lowercase()),
        false => {
            all.extend(rows);
            lines(&all)
        }
    }
}

/// Rows with their columns aligned.
fn lines<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            // Writing to a string does not fail.
            let _ = write!(line, "{cell:<width$}  ", width = width(column));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use xomni_coordinator::status::{CoordinatorStatus, MembershipStatus};

    use super::*;

    #[test]
    fn every_part_of_a_cluster_has_its_line() {
        let load = Load {
            queue_capacity: 256,
            queued: 3,
            running: 2,
            backlog: 1200,
            rate: 85.25,
            kv_blocks: 2048,
            kv_blocks_free: 2000,
        };
        let process = |first_rank| RankStatus {
            id: format!("backbone-{first_rank}"),
            address: "127.0.0.1:4000".into(),
            first_rank,
            ranks: 1,
            state: WorkerState::Ready,
            since_seconds: 61.0,
            epoch: 7,
        };
        let status = ClusterStatus {
            model: "m".into(),
            protocol_version: 1,
            coordinator: CoordinatorStatus {
                version: "0.1.0".into(),
                state: CoordinatorState::Serving,
                uptime_seconds: 3700.0,
                in_flight: 2,
                in_flight_capacity: 256,
                waiting: 0,
                waiting_capacity: 1024,
                backlog_tokens: 32,
            },
            membership: MembershipStatus {
                current: true,
                since_seconds: 59.0,
            },
            groups: vec![GroupStatus {
                id: "g".into(),
                model: "m".into(),
                state: WorkerState::Ready,
                since_seconds: 61.0,
                epoch: 7,
                tp: 2,
                ranks_present: 2,
                fingerprint: "f".into(),
                protocol_version: 1,
                takes_work: true,
                outstanding: 0,
                load,
                processes: vec![process(0), process(1)],
            }],
            decoders: vec![],
        };
        let expected = "\
model        m
coordinator  serving for 1h1m, version 0.1.0, protocol 1
requests     2 of 256 in flight, 0 of 1024 waiting, 32 tokens left
etcd         connected for 59s

GROUP  STATE  FOR   EPOCH  RANKS  RUNNING  QUEUE  ROWS LEFT  ROWS/S  KV FREE
g      ready  1m1s  7      2/2    2        3/256  1200       85.2    2000/2048

GROUP  RANKS  STATE  FOR   EPOCH  ADDRESS         ID
g      0      ready  1m1s  7      127.0.0.1:4000  backbone-0
g      1      ready  1m1s  7      127.0.0.1:4000  backbone-1

decoder: none
";
        assert_eq!(text(&status), expected);
    }

    #[test]
    fn durations_have_two_units() {
        let told = [0.4, 59.9, 61.0, 3_661.0, 90_000.0].map(duration);
        assert_eq!(told, ["0s", "59s", "1m1s", "1h1m", "1d1h"]);
    }
}
