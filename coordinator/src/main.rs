//! `xomni-coordinator`: admits requests for pictures and has the workers of a cluster draw them.

use std::{error::Error, process::ExitCode};

use clap::Parser;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use xomni_cluster::Cluster;
use xomni_coordinator::{config::Config, metrics::Metrics, server};
use xomni_worker::telemetry::Telemetry;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Config::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal ends it.
async fn run(config: Config) -> Result<(), Box<dyn Error>> {
    let _telemetry = Telemetry::start("xomni-coordinator");
    let mut registry = Registry::default();
    let setup = config.setup(Metrics::register(&mut registry))?;
    let cluster = Cluster::connect(&config.etcd, &config.cluster)?;
    let listener = TcpListener::bind(config.listen).await?;
    println!("listening on {}", listener.local_addr()?);
    server::serve(setup, listener, cluster.watch_workers(), signal()).await?;
    Ok(())
}
