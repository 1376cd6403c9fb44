//! `xomni-worker`: one process of a cluster, in the role of a backbone or of a decoder.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
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

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().role {
        Role::Backbone(arguments) => backbone::run(arguments).await,
        Role::Decoder(arguments) => decoder::run(arguments).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
