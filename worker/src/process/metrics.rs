//! Metrics, in the text format that Prometheus reads.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, metrics::info::Info, registry::Registry};
use tokio::task::JoinSet;
use tonic::service::Routes;

use super::Listener;

/// What OpenMetrics calls its text.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /metrics` at an address of its own. Dropping it ends that.
#[derive(Debug)]
pub struct Metrics {
    url: String,
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

    /// Shows `registry` on `listener`.
    pub fn serve(listener: Listener, registry: Arc<Registry>) -> Self {
        let url = format!("{}://{}/metrics", listener.scheme(), listener.address());
        let show = move || async move { Self::show(&registry) };
        let routes = Routes::from(Router::new().route("/metrics", get(show)));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let served = listener.serve(routes, std::future::pending(), Duration::ZERO);
            if let Err(error) = served.await {
                tracing::error!(%error, "metrics are not shown any more");
            }
        });
        Self {
            url,
            _server: server,
        }
    }

    /// The answer to who reads metrics.
    pub fn show(registry: &Registry) -> Response {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, registry);
        ([(CONTENT_TYPE, TEXT)], text).into_response()
    }

    /// Where it is asked; the port is the one that the system chose.
    pub fn url(&self) -> String {
        self.url.clone()
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
