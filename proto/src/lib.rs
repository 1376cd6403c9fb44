//! The wire: services and messages generated from the `.proto` files beside this crate, which
//! document every field. Nothing here is validated; that happens at each service's border.

/// Version of the protocol between coordinators and workers. Two adjacent versions work together.
pub const PROTOCOL_VERSION: u32 = 1;

/// What clients call.
pub mod images {
    tonic::include_proto!("xomni.v1");
}

/// What is said in chats, for those who call. Of the same package.
pub mod chat {
    pub use super::images::{
        ChatAccepted, ChatEvent, ChatImage, ChatMessage, ChatRole, CompleteRequest, ContentPart,
        Modality, TextDelta, TextEnd, chat_client, chat_event, chat_server, content_part,
    };
}

/// How the cluster stands, for those who call. Of the same package.
pub mod cluster {
    pub use super::images::{
        ClusterStatus, CoordinatorState, CoordinatorStatus, DecoderStatus, GetStatusRequest,
        GroupStatus, MembershipStatus, RankStatus, WorkerLoad, WorkerState, cluster_client,
        cluster_server,
    };
}

/// What coordinators and workers call of each other.
pub mod worker {
    tonic::include_proto!("xomni.worker.v1");
}

/// All services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("xomni");
