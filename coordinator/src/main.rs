//! `xomni-coordinator`: admits requests for pictures and has the workers of a cluster draw them.

use std::process::ExitCode;

use clap::Parser;
use xomni_coordinator::{config::Config, process::run};

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
