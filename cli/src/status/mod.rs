//! `xomni status`: how a cluster stands.

mod table;

use std::io::Write;

use clap::Args;
use xomni_coordinator::status::ClusterStatus;
use xomni_proto::cluster::{GetStatusRequest, cluster_client::ClusterClient};
use xomni_worker::process::ClientTls;

use crate::{client, error::CliError};

/// Arguments of `xomni status`.
#[derive(Debug, Args)]
pub struct Status {
    /// The coordinator to ask
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8400")]
    server: String,
    #[command(flatten)]
    tls: ClientTls,
    /// Print the status as JSON, with all that is known
    #[arg(long)]
    json: bool,
}

impl Status {
    /// Asks a coordinator and prints what it says.
    pub async fn run(self) -> Result<(), CliError> {
        let request = client::request(GetStatusRequest {})?;
        let mut client = ClusterClient::new(client::channel(&self.server, &self.tls)?);
        let answer = client.get_status(request).await?.into_inner();
        let status = ClusterStatus::try_from(answer)?;
        let text = match self.json {
            true => serde_json::to_string_pretty(&status)
                .map_err(|error| CliError::Argument(format!("--json: {error}")))?,
            false => table::text(&status),
        };
        let printed = writeln!(std::io::stdout(), "{}", text.trim_end());
        printed.map_err(CliError::file("standard output"))
    }
}
