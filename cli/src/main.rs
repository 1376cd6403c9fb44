//! The `xomni` command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xomni_worker::roles::{backbone, decoder};

use self::error::CliError;

mod batch;
mod bench;
mod chat;
mod client;
mod error;
mod generate;
mod key;
mod local;
mod model;
mod output;
mod progress;
mod prompts;
mod status;
mod terminal;
mod up;

/// Serves and runs X-Omni, a unified autoregressive image model.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Draw pictures of a prompt, in this process or on a server.
    Generate(Box<generate::Generate>),
    /// Talk with the model, in this process or on a server, and show it pictures.
    Chat(Box<chat::Chat>),
    /// Run a whole cluster on this machine: etcd, a coordinator, backbone groups and decoders.
    Up(Box<up::Up>),
    /// Make an API key: its record, a line for the coordinator's --api-keys, goes to standard
    /// output, the key itself to standard error.
    Key(key::KeyArguments),
    /// Show how a cluster stands: requests, groups, ranks, decoders and their queues.
    Status(status::Status),
    /// Measure.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// A coordinator, as `xomni up` starts it.
    #[command(hide = true)]
    Coordinator(Box<xomni_coordinator::config::Config>),
    /// A worker, as `xomni up` starts it.
    #[command(hide = true, subcommand)]
    Worker(Box<Worker>),
}

#[derive(Debug, Subcommand)]
enum Worker {
    Backbone(backbone::Arguments),
    Decoder(decoder::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Generate(generate) => until_interrupted(generate.run()).await,
        Command::Chat(chat) => until_interrupted(chat.run()).await,
        Command::Up(up) => up.run().await,
        Command::Key(arguments) => arguments.run(),
        Command::Status(status) => until_interrupted(status.run()).await,
        Command::Bench(bench) => until_interrupted(bench.run()).await,
        Command::Coordinator(config) => xomni_coordinator::process::run(*config)
            .await
            .map_err(Into::into),
        Command::Worker(worker) => match *worker {
            Worker::Backbone(arguments) => backbone::run(arguments).await.map_err(Into::into),
            Worker::Decoder(arguments) => decoder::run(arguments).await.map_err(Into::into),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Does `work`, unless Ctrl-C ends the process first.
async fn until_interrupted(
    work: impl Future<Output = Result<(), CliError>>,
) -> Result<(), CliError> {
    tokio::select! {
        // First, so that the signal is caught before any work begins.
        biased;
        // Files are written whole or not at all, so nothing has to be undone.
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted");
            std::process::exit(130);
        }
        result = work => result,
    }
}
