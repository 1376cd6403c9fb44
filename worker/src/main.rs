//! `xomni-worker`: one process of a cluster, in the role of a backbone or of a decoder.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xomni_engine::Result;
use xomni_worker::roles::{backbone, decoder};

#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve some ranks of a backbone group.
    Backbone(backbone::Arguments),
    /// Develop tokens into pictures, and read pictures as tokens.
    Decoder(decoder::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before there are threads. Where it fails, groups of GPUs are refused.
    #[cfg(feature = "cuda")]
    let _ = xomni_engine::ops::cuda::forbid_multicast();
    match run(cli.role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(role: Role) -> Result<()> {
    match role {
        Role::Backbone(arguments) => backbone::run(arguments).await,
        Role::Decoder(arguments) => decoder::run(arguments).await,
    }
}
