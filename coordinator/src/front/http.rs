//! OpenAI's HTTP API over the front, beside what operators ask for.

mod chat;
pub mod context;
mod files;
mod health;
pub mod idempotency;
pub mod images;
pub mod json;
mod keyed;
mod models;
mod openapi;
mod page;
pub mod problem;
mod uploads;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension, Json, Router,
    extract::{Request, State},
    http::{HeaderMap, Uri, header::HOST},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use prometheus_client::registry::Registry;
use tonic::Status;
use xomni_worker::{
    api::{Backbone, Decoder, Encoder},
    process,
};

use self::{files::Files, idempotency::Answers, problem::Problem};
use super::{
    Front,
    access::{Access, Pass},
};
use crate::status::{ClusterStatus, Observer};

/// Largest body of a request that can be replayed, in bytes.
const MAX_BODY: usize = 64 << 20;

/// How HTTP is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Longest that a request's body may take to arrive.
    pub read_timeout: Duration,
    /// How long a picture can be fetched by its address.
    pub url_expiry: Duration,
    /// Memory for pictures to be fetched, in bytes.
    pub url_bytes: usize,
    /// How addresses of pictures begin; as the request was addressed if `None`.
    pub public_url: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            read_timeout: Duration::from_secs(60),
            url_expiry: Duration::from_secs(3600),
            url_bytes: 256 << 20,
            public_url: None,
        }
    }
}

/// What every route works with.
#[derive(Debug)]
pub struct Api<B, D> {
    /// The way of every call.
    pub front: Arc<Front<B, D>>,
    /// Sees how the cluster stands.
    pub observer: Observer,
    /// What an operator sees.
    pub registry: Arc<Registry>,
    /// Pictures to be fetched.
    pub files: Arc<Files>,
    /// How it was set up.
    pub settings: Arc<Settings>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Seconds since 1970 when this process began.
    pub created: u64,
}

impl<B, D> Clone for Api<B, D> {
    fn clone(&self) -> Self {
        Self {
            front: self.front.clone(),
            observer: self.observer.clone(),
            registry: self.registry.clone(),
            files: self.files.clone(),
            settings: self.settings.clone(),
            ..*self
        }
    }
}

impl<B, D> Api<B, D> {
    /// An API that begins now.
    pub fn new(
        front: Arc<Front<B, D>>,
        observer: Observer,
        registry: Arc<Registry>,
        settings: Settings,
        scheme: &'static str,
    ) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            front,
            observer,
            registry,
            files: Arc::new(Files::new(settings.url_bytes, settings.url_expiry)),
            settings: Arc::new(settings),
            scheme,
            created: created.map_or(0, |since| since.as_secs()),
        }
    }

    /// How an address of this coordinator begins, as the client of a request knows it.
    fn base_url(&self, uri: &Uri, headers: &HeaderMap) -> String {
        if let Some(url) = &self.settings.public_url {
            return url.trim_end_matches('/').to_owned();
        }
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = uri.authority().map(|host| host.as_str()).or(host);
        format!("{}://{}", self.scheme, host.unwrap_or("localhost"))
    }
}

impl<B: Backbone, D: Decoder> Api<B, D> {
    /// Counts a request that is refused before the front has seen it.
    fn refuse(&self, problem: Problem) -> Problem {
        self.front.calls.begin().end(problem.counted());
        problem
    }
}

/// All routes: for those whom `access` lets in, `grpc` among them, and `open` for everyone.
pub fn routes<B: Backbone, D: Decoder + Encoder>(
    api: Api<B, D>,
    access: &Access,
    grpc: Router,
    open: Router,
) -> Router {
    let answers = Answers::new(MAX_BODY, api.settings.read_timeout);
    let working = Router::new()
        .route("/v1/images/generations", post(images::generations))
        .route("/v1/chat/completions", post(chat::complete))
        .route_layer(middleware::from_fn_with_state(answers, idempotency::layer));
    let keyed = Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/cluster", get(cluster))
        .route("/v1/files", uploads::all())
        .route("/v1/files/{id}", uploads::one())
        .route("/v1/files/{id}/content", uploads::content())
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/images/edits", post(images::edits))
        .route("/v1/images/variations", post(images::edits))
        .merge(working)
        .route_layer(middleware::from_fn_with_state(access.clone(), keyed::http));
    let everyone = Router::new()
        .merge(page::routes())
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/openapi.json", get(openapi::document))
        .route("/v1/images/files/{name}", get(images::file));
    let http = keyed
        .merge(everyone)
        .method_not_allowed_fallback(wrong_method)
        .fallback(nowhere)
        .layer(middleware::from_fn(context::layer))
        .with_state(api);
    let keyed = middleware::from_fn_with_state(access.clone(), keyed::grpc);
    let grpc = grpc.reset_fallback().route_layer(keyed);
    http.merge(grpc).merge(open.reset_fallback())
}

async fn metrics<B: Backbone, D: Decoder>(
    State(api): State<Api<B, D>>,
    Extension(pass): Extension<Pass>,
) -> Result<Response, Problem> {
    pass.operator()?;
    Ok(process::Metrics::show(&api.registry))
}

async fn cluster<B: Backbone, D: Decoder>(State(api): State<Api<B, D>>) -> Json<ClusterStatus> {
    Json(api.observer.status())
}

async fn wrong_method(request: Request) -> Problem {
    Problem::wrong_method(request.method())
}

/// What is asked for is not here; gRPC's clients are told so as they expect it.
async fn nowhere(request: Request) -> Response {
    let content = request.headers().get("content-type");
    if content.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return Status::unimplemented("no such service").into_http();
    }
    Problem::no_route(request.uri().path()).into_response()
}
