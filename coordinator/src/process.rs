//! A coordinator as a process: from its arguments to its last answer.

use xomni_engine::Result;
use xomni_worker::{
    process::{self, Signals, announce, die_with_parent},
    telemetry::Telemetry,
};

use crate::{config::Config, server};

/// Serves until a signal ends it.
///
/// # Errors
/// What kept it from starting or from serving.
pub async fn run(config: Config) -> Result<()> {
    let _telemetry = Telemetry::start("xomni-coordinator");
    if config.die_with_parent {
        die_with_parent()?;
    }
    let mut signals = Signals::catch()?;
    let setup = config.setup()?;
    let metrics = match config.metrics {
        Some(address) => {
            let listener = config.tls.listen("--metrics", address).await?;
            Some(process::Metrics::serve(listener, setup.registry.clone()))
        }
        None => None,
    };
    let cluster = config.cluster()?;
    let listener = config.tls.listen("--listen", config.listen).await?;
    announce(
        "coordinator",
        listener.address(),
        metrics.as_ref().map(process::Metrics::url),
    );
    let signalled = async {
        let signal = signals.next().await;
        tracing::info!(signal, "ends");
    };
    server::serve(setup, listener, cluster.watch_workers(), signalled).await
}
