//! The `xomni` command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod error;
mod generate;
mod output;
mod progress;
mod prompts;

/// Serves and runs X-Omni, a unified autoregressive image model.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Draw pictures of a prompt, with everything in this process.
    Generate(Box<generate::Generate>),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let work = async {
        match command {
            Command::Generate(generate) => generate.run().await,
        }
    };
    tokio::select! {
        // First, so that the signal is caught before any work begins.
        biased;
        // Files are written whole or not at all, so nothing has to be undone.
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted");
            std::process::exit(130);
        }
        result = work => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::from(error.exit_code())
            }
        },
    }
}
