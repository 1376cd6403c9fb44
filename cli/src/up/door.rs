//! How a cluster's coordinator is reached from outside.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;
use xomni_worker::process::ClientTls;

use crate::error::CliError;

/// Encryption of the coordinator's clients. The other processes stay on this machine.
#[derive(Debug, Args)]
pub struct Door {
    /// What the coordinator shows, and how it is asked whether it serves.
    #[command(flatten)]
    pub tls: ClientTls,
    /// PEM file of authorities: only clients that show a certificate of theirs are served
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Serve without TLS, even beyond this machine
    #[arg(long)]
    insecure: bool,
}

impl Door {
    /// Refuses a certificate that nobody here could check.
    pub fn check(&self) -> Result<(), CliError> {
        match (&self.tls.tls_cert, &self.tls.tls_ca) {
            (Some(_), None) => Err(CliError::Argument(
                "--tls-ca: must name the authority of --tls-cert, got nothing".into(),
            )),
            _ => Ok(()),
        }
    }

    /// What addresses of the coordinator begin with.
    pub fn scheme(&self) -> &'static str {
        match self.tls.tls_cert {
            Some(_) => "https",
            None => "http",
        }
    }

    /// The arguments of the coordinator.
    pub fn arguments(&self) -> Vec<OsString> {
        let files = [
            ("--tls-cert", &self.tls.tls_cert),
            ("--tls-key", &self.tls.tls_key),
            ("--tls-client-ca", &self.tls_client_ca),
        ];
        let files = files.into_iter().filter_map(|(name, file)| {
            let file = file.as_ref()?;
            Some([name.into(), file.clone().into_os_string()])
        });
        let insecure = self.insecure.then(|| "--insecure".into());
        files.flatten().chain(insecure).collect()
    }
}
