//! OpenAI's HTTP API over the front, beside what operators ask for.

pub mod context;
mod health;
pub mod json;
mod models;
pub mod problem;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{Request, State},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use tonic::Status;
use xomni_worker::{
    api::{Backbone, Decoder},
    process,
};

use self::problem::Problem;
use super::Front;
use crate::status::{ClusterStatus, Observer};

/// What every route works with.
#[derive(Debug)]
pub struct Api<B, D> {
    /// The way of every call.
    pub front: Arc<Front<B, D>>,
    /// Sees how the cluster stands.
    pub observer: Observer,
    /// What an operator sees.
    pub registry: Arc<Registry>,
    /// Longest that a request's body may take to arrive.
    pub read_timeout: Duration,
    /// Seconds since 1970 when this process began.
    pub created: u64,
}

impl<B, D> Clone for Api<B, D> {
    fn clone(&self) -> Self {
        Self {
            front: self.front.clone(),
            observer: self.observer.clone(),
            registry: self.registry.clone(),
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
        read_timeout: Duration,
    ) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            front,
            observer,
            registry,
            read_timeout,
            created: created.map_or(0, |since| since.as_secs()),
        }
    }
}

/// All routes, beside those of the gRPC services of `grpc`.
pub fn routes<B: Backbone, D: Decoder>(api: Api<B, D>, grpc: Router) -> Router {
    let http = Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics))
        .route("/v1/cluster", get(cluster))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(context::layer))
        .with_state(api);
    let lost = Router::new()
        .fallback(nowhere)
        .layer(middleware::from_fn(context::layer));
    http.merge(grpc.reset_fallback()).merge(lost)
}

async fn metrics<B: Backbone, D: Decoder>(State(api): State<Api<B, D>>) -> Response {
    process::Metrics::show(&api.registry)
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
