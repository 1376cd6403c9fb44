//! The server's side of TLS. It is not tonic's: that speaks to clients of HTTP/2 alone.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig, crypto::ring::default_provider, server::WebPkiClientVerifier,
    },
    server::TlsStream,
};
use tokio_stream::Stream;
use xomni_engine::Result;

use super::pem;

/// Longest that a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes that may go on at once; more connections wait for the first of them to end.
const HANDSHAKES: usize = 256;
/// The protocols that are spoken, by preference.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Shows the certificate of these files, and asks for one of `clients` where it is given.
///
/// # Errors
/// [`xomni_engine::Error::Io`] or [`xomni_engine::Error::Unsupported`] naming a file that is not
/// what it must be.
pub fn config(certificate: &Path, key: &Path, clients: Option<&Path>) -> Result<Arc<ServerConfig>> {
    let chain = pem::parse_certificates("--tls-cert", certificate, &pem::read(certificate)?)?;
    let private = pem::parse_key("--tls-key", key, &pem::read(key)?)?;
    let provider = Arc::new(default_provider());
    let unusable = |error| pem::refused("--tls-cert", certificate, error);
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let option = "--tls-client-ca";
            let mut roots = RootCertStore::empty();
            for authority in pem::parse_certificates(option, path, &pem::read(path)?)? {
                roots
                    .add(authority)
                    .map_err(|error| pem::refused(option, path, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .build()
                .map_err(|error| pem::refused(option, path, error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, private).map_err(unusable)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(Arc::new(config))
}

/// Connections whose handshake is done. One that fails or takes too long is dropped and disturbs
/// no other.
pub struct Handshakes<I, IO> {
    incoming: I,
    acceptor: TlsAcceptor,
    running: JoinSet<io::Result<TlsStream<IO>>>,
}

impl<I, IO> Handshakes<I, IO> {
    /// Shakes hands with all of `incoming`.
    pub fn new(incoming: I, config: Arc<ServerConfig>) -> Self {
        Self {
            incoming,
            acceptor: config.into(),
            running: JoinSet::new(),
        }
    }
}

impl<I, IO> Handshakes<I, IO>
where
    I: Stream<Item = io::Result<IO>> + Unpin,
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    /// Begins the handshakes of new connections.
    fn begin(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Error>> {
        while self.running.len() < HANDSHAKES {
            let connection = match Pin::new(&mut self.incoming).poll_next(context) {
                Poll::Ready(Some(Ok(connection))) => connection,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(error)),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            };
            let handshake = self.acceptor.accept(connection);
            self.running.spawn(async move {
                timeout(HANDSHAKE, handshake)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            });
        }
        Poll::Pending
    }
}

impl<I, IO> Stream for Handshakes<I, IO>
where
    I: Stream<Item = io::Result<IO>> + Unpin,
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Item = io::Result<TlsStream<IO>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let over = match self.begin(context) {
                Poll::Ready(Some(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => true,
                Poll::Pending => false,
            };
            match self.running.poll_join_next(context) {
                Poll::Ready(Some(Ok(Ok(connection)))) => return Poll::Ready(Some(Ok(connection))),
                Poll::Ready(Some(Ok(Err(error)))) => tracing::debug!(%error, "handshake failed"),
                Poll::Ready(Some(Err(error))) => tracing::error!(%error, "handshake ended"),
                Poll::Ready(None) if over => return Poll::Ready(None),
                // An empty set wakes nobody; a new connection does.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}
