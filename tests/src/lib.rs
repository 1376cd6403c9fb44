//! What the tests of the workspace share: golden fixtures, how results are compared with them,
//! runs of a fixture's backbone, coordinators and other servers within the test, the real binaries,
//! and clusters of them.

pub mod backbone;
pub mod browser;
pub mod certificates;
pub mod cluster;
pub mod collector;
pub mod coordinator;
pub mod drawing;
pub mod etcd;
pub mod golden;
pub mod http;
pub mod layout;
pub mod loopback;
pub mod metrics;
pub mod process;
pub mod relay;
pub mod tiny;
