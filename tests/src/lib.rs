//! What the tests of the workspace share: golden fixtures, how results are compared with them,
//! runs of a fixture's backbone, coordinators and other servers within the test, and the real binaries.

pub mod backbone;
pub mod collector;
pub mod coordinator;
pub mod etcd;
pub mod golden;
pub mod http;
pub mod layout;
pub mod loopback;
pub mod process;
pub mod relay;
pub mod tiny;
pub mod worker;
