//! `xomni key`: a new API key for a coordinator.

use clap::Args;
use xomni_coordinator::front::access::{Key, Record};

use crate::error::CliError;

/// Arguments of `xomni key`.
#[derive(Debug, Args)]
pub struct KeyArguments {
    /// Who will have it; the name under which its requests share the service
    name: String,
    /// Requests that are taken in a minute
    #[arg(long, value_name = "REQUESTS")]
    requests_per_minute: Option<u32>,
    /// Pictures that are drawn or wait at once
    #[arg(long, value_name = "PICTURES")]
    concurrent_images: Option<usize>,
    /// The most urgent priority of its requests; lower is more urgent
    #[arg(long, value_name = "PRIORITY", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// It also sees what operators see
    #[arg(long)]
    operator: bool,
}

impl KeyArguments {
    /// Shows the key on standard error, once, and writes its record, a line for the coordinator's
    /// `--api-keys`, to standard output.
    pub fn run(self) -> Result<(), CliError> {
        let (secret, record) = Record::generate(self.name)?;
        let record = Record {
            requests_per_minute: self.requests_per_minute,
            concurrent_images: self.concurrent_images,
            priority: self.priority,
            operator: self.operator,
            ..record
        };
        Key::new(record.clone()).map_err(CliError::Argument)?;
        let line = serde_json::to_string(&record)
            .map_err(|error| CliError::Argument(error.to_string()))?;
        println!("{line}");
        eprintln!("the key, shown only here: {secret}");
        Ok(())
    }
}
