//! Metrics, in the text format that Prometheus reads.

use std::{net::SocketAddr, path::Path, sync::Arc};

use axum::{
    Router,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, metrics::info::Info, registry::Registry};
use tokio::{net::TcpListener, task::JoinSet};
use xomni_engine::{Error, Result};

/// What OpenMetrics calls its text.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /metrics` at an address of its own. Dropping it ends that.
#[derive(Debug)]
pub struct Metrics {
    address: SocketAddr,
    _server: JoinSet<()>,
}

impl Metrics {
    /// Names begin with `xomni_`; the first is `xomni_build_info`.
    pub fn registry() -> Registry {
        let mut registry = Registry::with_prefix("xomni");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs here", version);
        registry
    }

    /// Shows `registry` at `address`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the address if it cannot be listened at.
    pub async fn serve(address: SocketAddr, registry: Arc<Registry>) -> Result<Self> {
        let io = |error| Error::io(Path::new(&address.to_string()), error);
        let listener = TcpListener::bind(address).await.map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let show = move || async move { Self::show(&registry) };
        let mut server = JoinSet::new();
        server.spawn(async move {
            let routes = Router::new().route("/metrics", get(show));
            if let Err(error) = axum::serve(listener, routes).await {
                tracing::error!(%error, "metrics are not shown any more");
            }
        });
        Ok(Self {
            address,
            _server: server,
        })
    }

    /// The answer to who reads metrics.
    pub fn show(registry: &Registry) -> Response {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, registry);
        ([(CONTENT_TYPE, TEXT)], text).into_response()
    }

    /// Where it listens; the port is the one that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_tells_its_version() {
        let mut text = String::new();
        encode(&mut text, &Metrics::registry()).expect("text");
        let version = env!("CARGO_PKG_VERSION");
        let line = format!("xomni_build_info{{version=\"{version}\"}} 1");
        assert!(text.lines().any(|shown| shown == line), "{text}");
    }
}
