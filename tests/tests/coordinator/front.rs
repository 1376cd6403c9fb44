//! `xomni.v1.Images` as a client sees it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use xomni_coordinator::admission::Bounds;
use xomni_proto::images::{
    GenerateImagesRequest, ImageEvent, image_event::Event, images_client::ImagesClient,
};
use xomni_tests::{
    coordinator::{Cluster, ROOMY, SOON},
    tiny::Tiny,
};

/// More than a test has time for.
const LONG: &str = "256x256";

fn client(cluster: &Cluster) -> ImagesClient<Channel> {
    ImagesClient::new(cluster.channel())
}

async fn begin(cluster: &Cluster, size: &str) -> Result<Streaming<ImageEvent>, Status> {
    let answer = client(cluster).generate(request(size)).await;
    answer.map(tonic::Response::into_inner)
}

/// Begins a request and waits until it runs.
async fn begun(cluster: &Cluster, size: &str) -> Streaming<ImageEvent> {
    let mut stream = begin(cluster, size).await.expect("accepted");
    let first = stream
        .message()
        .await
        .expect("runs")
        .and_then(|event| event.event);
    assert!(matches!(first, Some(Event::Accepted(_))), "{first:?}");
    stream
}

fn request(size: &str) -> GenerateImagesRequest {
    GenerateImagesRequest {
        prompt: "a red fox".into(),
        size: Some(size.into()),
        seed: Some(7),
        num_inference_steps: Some(3),
        n: Some(2),
        ..Default::default()
    }
}

/// The pictures of a stream to its end.
async fn pictures(mut stream: Streaming<ImageEvent>) -> Result<Vec<Vec<u8>>, Status> {
    let mut pictures = vec![vec![]; 2];
    let mut last = [0; 2];
    while let Some(event) = timeout(SOON, stream.message()).await.expect("in time")? {
        match event.event.expect("an event") {
            Event::Picture(chunk) => {
                let index = chunk.index as usize;
                pictures[index].extend_from_slice(&chunk.data);
                last[index] += u32::from(chunk.last);
            }
            Event::Drawing(drawing) => assert!(drawing.done <= drawing.total),
            Event::Decoding(_) | Event::Accepted(_) | Event::Partial(_) => {}
        }
    }
    assert_eq!(last, [1, 1]);
    Ok(pictures)
}

async fn expected(model: &Tiny, size: &str) -> Vec<Vec<u8>> {
    let job = model.job("a red fox", size, 2);
    let images = model.draw(job).await;
    images.into_iter().map(|image| image.png).collect()
}

#[tokio::test]
async fn pictures_are_those_of_one_process() {
    let cluster = Cluster::start(1, ROOMY).await;
    let stream = begun(&cluster, "96x64").await;
    let drawn = pictures(stream).await.expect("drawn");
    assert_eq!(drawn, expected(&cluster.model, "96x64").await);
    cluster.idle().await;
    assert_eq!(cluster.metrics.requests(Code::Ok).get(), 1);
    assert_eq!(cluster.metrics.images.get(), 2);
}

#[tokio::test]
async fn bad_input_is_refused_by_name() {
    let cluster = Cluster::start(1, ROOMY).await;
    let status = begin(&cluster, "60x64").await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("size: "), "{status:?}");
    let counted = cluster.metrics.requests(Code::InvalidArgument);
    assert_eq!(counted.get(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_frees_everything() {
    let cluster = Cluster::start(1, ROOMY).await;
    let mut stream = begun(&cluster, LONG).await;
    stream.message().await.expect("draws");
    drop(stream);
    cluster.idle().await;
    assert_eq!(cluster.metrics.requests(Code::Cancelled).get(), 1);
}

#[tokio::test]
async fn a_deadline_ends_a_request() {
    let cluster = Cluster::start(1, ROOMY).await;
    let mut request = Request::new(request(LONG));
    request.set_timeout(Duration::from_millis(200));
    let answer = client(&cluster).generate(request).await;
    let ended = match answer {
        Ok(answer) => pictures(answer.into_inner()).await.map(drop),
        Err(status) => Err(status),
    };
    assert!(ended.is_err());
    cluster.idle().await;
}

#[tokio::test]
async fn overload_is_refused_with_the_time_to_come_back() {
    let bounds = Bounds {
        in_flight: 1,
        queue: 1,
    };
    let cluster = Cluster::start(1, bounds).await;
    let running = begun(&cluster, "96x64").await;
    let waiting = begin(&cluster, "96x64").await.expect("waits");
    let status = begin(&cluster, "96x64").await.expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let retry = status.metadata().get("retry-after-ms").expect("a time");
    let millis: u64 = retry.to_str().expect("text").parse().expect("a number");
    assert!(millis > 0);
    let expected = expected(&cluster.model, "96x64").await;
    for stream in [running, waiting] {
        assert_eq!(pictures(stream).await.expect("undisturbed"), expected);
    }
    cluster.idle().await;
}

#[tokio::test]
async fn two_groups_share_load() {
    let cluster = Cluster::start(2, ROOMY).await;
    let mut streams = vec![];
    for _ in 0..4 {
        streams.push(begun(&cluster, "64x64").await);
    }
    let jobs = cluster
        .workers
        .iter()
        .map(|worker| worker.jobs.load(Ordering::Relaxed));
    let jobs: Vec<_> = jobs.collect();
    for stream in streams {
        pictures(stream).await.expect("drawn");
    }
    let after = cluster
        .workers
        .iter()
        .map(|worker| worker.jobs.load(Ordering::Relaxed));
    assert_eq!(after.collect::<Vec<_>>(), [2, 2], "at first {jobs:?}");
}

#[tokio::test]
async fn images_outlive_the_group_that_draws_them() {
    let mut cluster = Cluster::start(2, ROOMY).await;
    let expected = expected(&cluster.model, "128x128").await;
    let mut stream = begun(&cluster, "128x128").await;
    stream.message().await.expect("draws");
    let drawing = cluster
        .workers
        .iter()
        .position(|w| w.jobs.load(Ordering::Relaxed) > 0);
    drop(cluster.workers.remove(drawing.expect("a group draws")));
    assert_eq!(pictures(stream).await.expect("drawn"), expected);
    assert_eq!(cluster.workers[0].jobs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn without_workers_it_is_not_healthy_and_says_so() {
    let cluster = Cluster::start(1, ROOMY).await;
    cluster.membership.send_replace(Arc::default());
    cluster.serving(false).await;
    let status = begin(&cluster, "64x64").await.expect_err("refused");
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let mut cluster = Cluster::start(1, ROOMY).await;
    let expected = expected(&cluster.model, "128x128").await;
    let stream = begun(&cluster, "128x128").await;
    drop(cluster.stop.take());
    cluster.serving(false).await;
    let status = begin(&cluster, "64x64").await.expect_err("refused");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(pictures(stream).await.expect("finished"), expected);
    let served = timeout(SOON, cluster.served).await.expect("ends in time");
    served.expect("no panic").expect("no error");
}

#[tokio::test]
async fn reflection_lists_what_is_served() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let cluster = Cluster::start(1, ROOMY).await;
    let mut client = ServerReflectionClient::new(cluster.channel());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await;
    let answer = answers.expect("answers").into_inner().message().await;
    let services = match answer
        .expect("an answer")
        .and_then(|answer| answer.message_response)
    {
        Some(MessageResponse::ListServicesResponse(list)) => list.service,
        other => panic!("{other:?}"),
    };
    let mut names: Vec<_> = services.into_iter().map(|service| service.name).collect();
    names.sort();
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "xomni.v1.Chat",
        "xomni.v1.Cluster",
        "xomni.v1.Images",
    ];
    assert_eq!(names, expected);
}
