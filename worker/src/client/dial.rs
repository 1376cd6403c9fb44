//! How other processes are reached.

use tonic::transport::{ClientTlsConfig, Endpoint, Error};

/// Reaches processes by `host:port`, all of them over TLS or none.
#[derive(Debug, Clone, Default)]
pub struct Dialer {
    tls: Option<ClientTlsConfig>,
}

impl Dialer {
    /// Over TLS. The default is to go without.
    pub fn new(tls: ClientTlsConfig) -> Self {
        Self { tls: Some(tls) }
    }

    /// Whether it goes over TLS.
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Where to connect for the process at `address`.
    ///
    /// # Errors
    /// For what is no address, and for certificates that cannot be used.
    pub fn endpoint(&self, address: &str) -> Result<Endpoint, Error> {
        match &self.tls {
            None => Endpoint::from_shared(format!("http://{address}")),
            Some(tls) => {
                Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls.clone())
            }
        }
    }
}
