//! What stands in etcd, as JSON. Fields may be added, never changed: two adjacent versions of the
//! software read each other's records.

use serde::{Deserialize, Serialize};

/// Names the keys of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// The keys under `/xomni/{cluster}/`.
    pub fn new(cluster: &str) -> Self {
        Self {
            prefix: format!("/xomni/{cluster}/"),
        }
    }

    /// The folder of all workers.
    pub fn workers(&self) -> String {
        format!("{}workers/", self.prefix)
    }

    /// One worker's record; kept under its lease.
    pub fn worker(&self, id: &str) -> String {
        format!("{}workers/{id}", self.prefix)
    }

    /// The epoch of a group.
    pub fn epoch(&self, group: &str) -> String {
        format!("{}groups/{group}/epoch", self.prefix)
    }
}

/// A process that serves, registered once it is warm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Names the process; a restarted one has another name.
    pub id: String,
    /// `host:port` of its gRPC services.
    pub address: String,
    /// Version of its protocol.
    pub protocol_version: u32,
    /// Name of the model it serves.
    pub model: String,
    /// What determines its results to the bit: weights digest, types, kernels, device kind.
    pub fingerprint: String,
    /// Whether it takes work.
    pub state: WorkerState,
    /// What it does.
    pub role: Role,
    /// What it can hold and holds.
    pub load: Load,
}

/// Whether a worker takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Warm, but its group is not complete.
    Forming,
    /// Takes work.
    Ready,
    /// Finishes what it has and takes nothing new.
    Draining,
}

/// What a worker does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Role {
    /// Some ranks of a backbone group.
    Backbone {
        /// The group.
        group: String,
        /// First rank of this process; rank 0 leads and is called.
        first_rank: u32,
        /// Ranks of this process.
        ranks: u32,
        /// Ranks of the group.
        group_size: u32,
        /// The epoch it is in; 0: none yet.
        epoch: u64,
    },
    /// Develops and reads pictures.
    Decoder,
}

/// What a worker can hold and holds; refreshed every second or so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Jobs that may wait.
    pub queue_capacity: u64,
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs that run.
    pub running: u64,
    /// Work known to be outstanding: rows of a backbone, denoising steps of a decoder.
    pub backlog: u64,
    /// Work done a second, lately; 0: not known.
    pub rate: f64,
    /// K/V blocks, all and free (backbone only).
    pub kv_blocks: u64,
    /// Free K/V blocks.
    pub kv_blocks_free: u64,
}

/// One life of a backbone group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Counts the epochs of the group, from 1; taken by transaction.
    pub number: u64,
    /// The process that leads.
    pub leader: String,
    /// `host:port` of its gRPC services.
    pub address: String,
    /// Ranks of the group.
    pub group_size: u32,
    /// Hexadecimal secret that ranks show each other.
    pub secret: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_a_newer_version_are_read() {
        let text = r#"{"id":"a","address":"h:1","protocol_version":2,"model":"m","fingerprint":"f",
            "state":"ready","role":{"role":"backbone","group":"g","first_rank":0,"ranks":1,
            "group_size":2,"epoch":3,"zone":"x"},"load":{"queue_capacity":1,"queued":0,"running":0,
            "backlog":0,"rate":0.5,"kv_blocks":0,"kv_blocks_free":0},"colour":"blue"}"#;
        let record: WorkerRecord = serde_json::from_str(text).expect("readable");
        assert!(matches!(record.role, Role::Backbone { epoch: 3, .. }));
    }
}
