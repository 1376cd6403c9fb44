//! What every serving process does, whatever its role: it comes and goes by signals, listens,
//! drains under a deadline, is present in the cluster, and shows its metrics and its health.

mod announce;
mod load;
mod metrics;
mod parent;
mod patience;
mod presence;
mod server;
mod signals;
mod tls;

pub use announce::announce;
pub use load::on_thread;
pub use metrics::Metrics;
pub use parent::die_with_parent;
pub use presence::Presence;
pub use server::{Drained, Listener};
pub use signals::Signals;
pub use tls::{ClientTls, Tls};
