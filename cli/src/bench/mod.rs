//! `xomni bench`: measures.

mod backbone;
mod coordinator;
mod distribution;
mod mix;
mod serve;
mod usage;

use clap::Subcommand;

use crate::error::CliError;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// A backbone on a device: whether it is right, then its steps, kernels, prefill and whole images.
    Backbone(Box<backbone::Arguments>),
    /// What the coordinator adds to every frame of many concurrent streams, and what it costs.
    Coordinator(coordinator::Arguments),
    /// A server's images under load: latencies, throughput and goodput.
    Serve(Box<serve::Arguments>),
}

impl Bench {
    /// Measures and prints what was found.
    pub async fn run(self) -> Result<(), CliError> {
        match self {
            Self::Backbone(arguments) => arguments.run().await,
            Self::Coordinator(arguments) => arguments.run().await,
            Self::Serve(arguments) => arguments.run().await,
        }
    }
}
