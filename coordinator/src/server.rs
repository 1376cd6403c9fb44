//! A coordinator from its first call to its last.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::{sync::watch, time::timeout};
use tonic::service::Routes;
use tonic_health::{pb::health_server, server::HealthReporter};
use tonic_reflection::{
    pb::{v1, v1alpha},
    server::Builder,
};
use xomni_cluster::Membership;
use xomni_engine::{Error, Result};
use xomni_proto::{chat::chat_server, cluster::cluster_server, images::images_server};
use xomni_worker::{client::Dialer, process::Listener};

use crate::{
    admission::{Bounds, Gate},
    front::{
        Front,
        access::Access,
        call::{Calls, Phase},
        cluster::cluster_service,
        grpc::{chat_service, images_service},
        http::{self, Api},
        progress::Progress,
    },
    metrics::Metrics,
    pipeline::Pipeline,
    pool::{
        BackbonePool, DecoderPool, Pool,
        connect::{Backbones, Channels, Decoders},
    },
    request::{ChatModel, Limits},
    routing::{Router, Stage},
    status::Observer,
    uploads::{Room, Uploads},
};

/// How long a worker that failed is avoided, unless it has another epoch before.
const COOLDOWN: Duration = Duration::from_secs(1);
/// How long connections may take to close after their last call.
const CLOSE: Duration = Duration::from_secs(1);

/// What a coordinator is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Name of the model.
    pub model: String,
    /// What it makes of chats.
    pub chat: Arc<ChatModel>,
    /// What it can draw.
    pub limits: Limits,
    /// Denoising steps where a request names none.
    pub steps: usize,
    /// How much runs and waits at once.
    pub bounds: Bounds,
    /// Attempts at each stage of a request.
    pub attempts: u32,
    /// Longest that a request may take.
    pub timeout: Duration,
    /// Longest that requests may take after the shutdown has begun.
    pub drain: Duration,
    /// How HTTP is served.
    pub http: http::Settings,
    /// Who may call.
    pub access: Access,
    /// How workers are reached.
    pub dialer: Dialer,
    /// Longest that requests may run without any of them getting on, before this is not ready.
    pub stall_timeout: Duration,
    /// How much clients can upload.
    pub upload_room: Room,
    /// How long an upload is kept where its client says nothing else.
    pub upload_lifetime: Duration,
    /// What is counted.
    pub metrics: Metrics,
    /// What an operator sees of it.
    pub registry: Arc<Registry>,
}

/// Serves on `listener`, with the workers of `membership`, until `shutdown`; then refuses new
/// requests and finishes those that run, under the drain's deadline.
///
/// # Errors
/// [`Error::WorkerLost`] if the server fails.
pub async fn serve(
    setup: Setup,
    listener: Listener,
    membership: watch::Receiver<Arc<Membership>>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let router = Router::new(COOLDOWN);
    let channels = Channels::new(setup.dialer.clone());
    let calls = Calls::new(setup.metrics.clone());
    let backbone = BackbonePool::new(pool(&setup, &router, Backbones(channels.clone())));
    let decoder = DecoderPool::new(pool(&setup, &router, Decoders(channels)), setup.steps);
    let gate = Gate::new(setup.bounds, setup.metrics.clone());
    let observer = Observer::new(&setup.model, &gate, &router, &calls);
    let front = Arc::new(Front {
        model: setup.model.clone(),
        limits: setup.limits.clone(),
        chat: setup.chat.clone(),
        uploads: Uploads::new(setup.upload_room, setup.upload_lifetime),
        timeout: setup.timeout,
        pipeline: Pipeline::new(setup.chat.clone(), backbone, Arc::new(decoder)),
        gate,
        router: router.clone(),
        calls: calls.clone(),
        progress: Progress::new(setup.stall_timeout),
        metrics: setup.metrics.clone(),
    });
    let (health, health_service) = tonic_health::server::health_reporter();
    let grpc = Routes::new(images_service(front.clone()))
        .add_service(chat_service(front.clone()))
        .add_service(cluster_service(observer.clone()));
    let open = reflection(Routes::new(health_service))?;
    let api = Api::new(
        front,
        observer.clone(),
        setup.registry.clone(),
        setup.http.clone(),
        listener.scheme(),
    );
    let (grpc, open) = (grpc.into_axum_router(), open.into_axum_router());
    let routes = http::routes(api, &setup.access, grpc, open);
    let life = async {
        tokio::select! {
            never = follow(&setup, &router, membership, &observer, &health) => match never {},
            () = shutdown => {}
        }
        tracing::info!("drains");
        calls.enter(Phase::Draining);
        report(&health, false).await;
        if timeout(setup.drain, calls.idle()).await.is_err() {
            tracing::warn!(after = ?setup.drain, "requests in progress are given up");
        }
        calls.enter(Phase::Ended);
    };
    listener.serve(routes.into(), life, CLOSE).await.map(|_| ())
}

/// Adds the reflection service in both its versions: clients still ask for the older. It lists
/// what is served here; the workers' services are described in the same files.
fn reflection(routes: Routes) -> Result<Routes> {
    let descriptors = [
        xomni_proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        v1::FILE_DESCRIPTOR_SET,
        v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let services = [
        images_server::SERVICE_NAME,
        chat_server::SERVICE_NAME,
        cluster_server::SERVICE_NAME,
        health_server::SERVICE_NAME,
        v1::server_reflection_server::SERVICE_NAME,
        v1alpha::server_reflection_server::SERVICE_NAME,
    ];
    let describe = || {
        let empty = Builder::configure().include_reflection_service(false);
        let described = descriptors
            .into_iter()
            .fold(empty, Builder::register_encoded_file_descriptor_set);
        services
            .into_iter()
            .fold(described, Builder::with_service_name)
    };
    let failed = |error: tonic_reflection::server::Error| {
        Error::worker_lost("reflection", error.to_string())
    };
    Ok(routes
        .add_service(describe().build_v1().map_err(failed)?)
        .add_service(describe().build_v1alpha().map_err(failed)?))
}

fn pool<C>(setup: &Setup, router: &Router, connect: C) -> Pool<C> {
    Pool {
        model: setup.model.clone(),
        router: router.clone(),
        connect,
        attempts: setup.attempts,
        metrics: setup.metrics.clone(),
    }
}

/// Keeps the routing table, the status, the health and the metrics as the membership is.
async fn follow(
    setup: &Setup,
    router: &Router,
    mut membership: watch::Receiver<Arc<Membership>>,
    observer: &Observer,
    health: &HealthReporter,
) -> Infallible {
    loop {
        let workers = membership.borrow_and_update().clone();
        router.update(workers.workers());
        observer.see(&workers);
        let connected = i64::from(workers.is_current());
        setup.metrics.etcd_connected.set(connected);
        let stages = [Stage::Backbone, Stage::Decoder];
        let ready = stages.map(|stage| router.ready(stage, &setup.model));
        for (stage, ready) in stages.into_iter().zip(ready) {
            setup.metrics.ready(stage).set(ready as i64);
        }
        report(health, ready.into_iter().all(|ready| ready > 0)).await;
        if membership.changed().await.is_err() {
            // Nobody tells of changes any more; what was last seen stays.
            return std::future::pending().await;
        }
    }
}

async fn report(health: &HealthReporter, serving: bool) {
    let status = if serving {
        tonic_health::ServingStatus::Serving
    } else {
        tonic_health::ServingStatus::NotServing
    };
    for service in ["", images_server::SERVICE_NAME, chat_server::SERVICE_NAME] {
        health.set_service_status(service, status).await;
    }
}
