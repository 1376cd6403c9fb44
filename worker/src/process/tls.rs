//! Encryption between processes: what one shows, whom it trusts, and where it insists.

mod handshake;
mod pem;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::Args;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use xomni_cluster::Cluster;
use xomni_engine::{Error, Result};

pub(super) use handshake::Handshakes;

use super::Listener;
use crate::client::Dialer;

/// How a process calls others.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Encryption")]
pub struct ClientTls {
    /// PEM file of the certificate that this process shows, and of those that vouch for it
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of the private key of --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// PEM file of authorities: others are called over TLS and must show a certificate of theirs
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Name that their certificates must be for; the host that is called by default
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    pub tls_server_name: Option<String>,
}

/// How a process serves and calls others.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Encryption")]
pub struct Tls {
    /// How it calls them.
    #[command(flatten)]
    pub client: ClientTls,
    /// PEM file of authorities: only clients that show a certificate of theirs are served
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// PEM file of the authorities of etcd's certificates; --tls-ca by default
    #[arg(long, value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// PEM file of the certificate that etcd is shown; --tls-cert by default
    #[arg(long, value_name = "FILE", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// PEM file of the private key of --etcd-cert
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// Do without TLS where none is configured, even beyond this machine
    #[arg(long)]
    pub insecure: bool,
}

impl ClientTls {
    /// Calls other processes as these settings say.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Unsupported`] naming a file that is not what it must be.
    pub fn dialer(&self) -> Result<Dialer> {
        let Some(authorities) = &self.tls_ca else {
            return Ok(Dialer::default());
        };
        let mut tls = trusting("--tls-ca", authorities)?;
        if let Some(name) = &self.tls_server_name {
            tls = tls.domain_name(name);
        }
        Ok(Dialer::new(self.identified(tls)?))
    }

    fn identified(&self, tls: ClientTlsConfig) -> Result<ClientTlsConfig> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Ok(tls.identity(Identity::from_pem(
                pem::certificates("--tls-cert", certificate)?,
                pem::key("--tls-key", key)?,
            ))),
            _ => Ok(tls),
        }
    }
}

impl Tls {
    /// Listens at the address of an option, with TLS if there is a certificate.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an address that other machines reach, without a certificate and
    /// not told to do without; [`Error::Io`] or [`Error::Unsupported`] for files that are not what
    /// they must be, and an address that cannot be listened at.
    pub async fn listen(&self, option: &str, address: SocketAddr) -> Result<Listener> {
        let ClientTls {
            tls_cert, tls_key, ..
        } = &self.client;
        let config = match (tls_cert, tls_key) {
            (Some(certificate), Some(key)) => Some(handshake::config(
                certificate,
                key,
                self.tls_client_ca.as_deref(),
            )?),
            _ if address.ip().is_loopback() || self.insecure => None,
            _ => {
                return Err(Error::Unsupported {
                    what: format!("{option} {address}"),
                    reason: "other machines reach it: give --tls-cert and --tls-key, or \
                             --insecure to serve without TLS"
                        .into(),
                });
            }
        };
        Ok(Listener::bind(address).await?.with_tls(config))
    }

    /// Reaches the cluster of this name in the etcd of these endpoints (`host:port`, `http://…` or
    /// `https://…`), over TLS if its authorities are known.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for endpoints or a name that cannot work, and for an etcd on another
    /// machine without TLS unless told to do without; as [`ClientTls::dialer`] for files.
    pub fn cluster(&self, endpoints: &[String], name: &str) -> Result<Cluster> {
        let refused = |reason: String| Error::Unsupported {
            what: format!("--etcd {} --cluster {name}", endpoints.join(",")),
            reason,
        };
        let tls = self.etcd()?;
        let plain = |endpoint: &&String| {
            endpoint.starts_with("http://") || (tls.is_none() && !endpoint.starts_with("https://"))
        };
        let unknown = endpoints.iter().find(|at| at.starts_with("https://"));
        if let Some(endpoint) = unknown.filter(|_| tls.is_none()) {
            return Err(refused(format!(
                "{endpoint} cannot be trusted: give --etcd-ca"
            )));
        }
        let exposed = endpoints.iter().filter(plain).find(|at| !is_local(at));
        if let Some(endpoint) = exposed.filter(|_| !self.insecure) {
            return Err(refused(format!(
                "{endpoint} is on another machine: give --etcd-ca, or --insecure to do without TLS"
            )));
        }
        Cluster::connect_with(endpoints, name, tls).map_err(|error| refused(error.to_string()))
    }

    fn etcd(&self) -> Result<Option<ClientTlsConfig>> {
        let Some(authorities) = self.etcd_ca.as_ref().or(self.client.tls_ca.as_ref()) else {
            return Ok(None);
        };
        let tls = trusting("--etcd-ca", authorities)?;
        match (&self.etcd_cert, &self.etcd_key) {
            (Some(certificate), Some(key)) => Ok(Some(tls.identity(Identity::from_pem(
                pem::certificates("--etcd-cert", certificate)?,
                pem::key("--etcd-key", key)?,
            )))),
            _ => self.client.identified(tls).map(Some),
        }
    }
}

fn trusting(option: &str, authorities: &Path) -> Result<ClientTlsConfig> {
    let authorities = Certificate::from_pem(pem::certificates(option, authorities)?);
    Ok(ClientTlsConfig::new().ca_certificate(authorities))
}

/// Whether an endpoint of etcd is on this machine for certain.
fn is_local(endpoint: &str) -> bool {
    let authority = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse().map(|address: IpAddr| address.is_loopback());
    address.unwrap_or(host == "localhost")
}

#[cfg(test)]
mod tests;
