//! One image, one trace: across all processes, through losses, and in the log lines.

use std::{collections::BTreeSet, path::Path, time::Duration};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tempfile::TempDir;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};
use xomni_proto::images::{
    DecodePart, GenerateImagesRequest, image_event::Event, images_client::ImagesClient,
};
use xomni_tests::{
    collector::{Collector, Exported, Trace},
    etcd::Etcd,
    golden::Fixture,
    process::{PATIENCE, Process, wait_for},
};

/// The trace and the span of the client.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";
/// How far a clock may be behind itself, in nanoseconds.
const TOLERANCE: u64 = 5_000_000;

const COORDINATOR: &str = "xomni-coordinator";
const BACKBONE: &str = "xomni-backbone";
const DECODER: &str = "xomni-decoder";

/// The spans of one image by service, and how they hang together.
const TREE: [(&str, &str, &str); 15] = [
    (COORDINATOR, "admission", "request"),
    (COORDINATOR, "draw", "request"),
    (COORDINATOR, "develop", "request"),
    (BACKBONE, "Backbone.Generate", "draw"),
    (BACKBONE, "queue", "Backbone.Generate"),
    (BACKBONE, "prefill", "Backbone.Generate"),
    (BACKBONE, "decode", "Backbone.Generate"),
    (BACKBONE, "rank", "Backbone.Generate"),
    (DECODER, "Decoder.Decode", "develop"),
    (DECODER, "queue", "Decoder.Decode"),
    (DECODER, "text encoders", "Decoder.Decode"),
    (DECODER, "image tokens", "Decoder.Decode"),
    (DECODER, "denoise", "Decoder.Decode"),
    (DECODER, "vae", "Decoder.Decode"),
    (DECODER, "png", "Decoder.Decode"),
];

/// etcd, a coordinator, the two ranks of one group, and a decoder.
struct Cluster {
    etcd: Etcd,
    folder: TempDir,
    variables: Vec<(&'static str, String)>,
    coordinator: Process,
    ranks: [Process; 2],
    decoder: Process,
    channel: Channel,
}

impl Cluster {
    async fn start(variables: Vec<(&'static str, String)>, coordinator: &[&str]) -> Self {
        let etcd = Etcd::new();
        let folder = tempfile::tempdir().expect("folder for logs");
        let fixture = Fixture::open();
        let model = fixture.x_omni().display().to_string();
        let common = ["--model", &model, "--etcd", &etcd.endpoints()[0]];
        let arguments = [&common[..], coordinator].concat();
        let start = |name: &str, program: &str, arguments: &[&str]| {
            start(name, program, arguments, &variables, folder.path())
        };
        let mut coordinator = start("coordinator", "xomni-coordinator", &arguments);
        let ranks = [0, 1].map(|rank| start_rank(&etcd, &variables, folder.path(), rank));
        let decoder = start_decoder(&etcd, &variables, folder.path());
        let address = coordinator.wait_for_line("coordinator ready at ");
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("address");
        let cluster = Self {
            etcd,
            folder,
            coordinator,
            ranks,
            decoder,
            variables,
            channel: endpoint.connect_lazy(),
        };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while let Err(status) = cluster.draw(request("16x16", None), |_| ()).await {
            assert!(tokio::time::Instant::now() < deadline, "{status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        cluster
    }

    /// Draws one picture; `on_event` sees what happens meanwhile.
    async fn draw(
        &self,
        request: Request<GenerateImagesRequest>,
        on_event: impl FnMut(&Event),
    ) -> Result<Vec<u8>, Status> {
        draw(self.channel.clone(), request, on_event).await
    }

    /// Kills rank 1 and starts it again.
    fn lose_rank(&mut self) {
        self.ranks[1].kill();
        self.ranks[1] = start_rank(&self.etcd, &self.variables, self.folder.path(), 1);
    }

    /// Kills the decoder and starts another.
    fn lose_decoder(&mut self) {
        self.decoder.kill();
        self.decoder = start_decoder(&self.etcd, &self.variables, self.folder.path());
    }
}

fn start(
    name: &str,
    program: &str,
    arguments: &[&str],
    variables: &[(&'static str, String)],
    folder: &Path,
) -> Process {
    let variables: Vec<_> = variables
        .iter()
        .map(|(key, v)| (*key, v.as_str()))
        .collect();
    Process::start(name, program, arguments, &variables, folder)
}

fn start_rank(
    etcd: &Etcd,
    variables: &[(&'static str, String)],
    folder: &Path,
    rank: u32,
) -> Process {
    let model = Fixture::open().x_omni().display().to_string();
    let (name, rank) = (format!("rank {rank}"), rank.to_string());
    let etcd = &etcd.endpoints()[0];
    let place = ["--tp", "2", "--ranks", "1", "--first-rank", &rank];
    let model = ["--model", &model, "--etcd", etcd, "--kv-memory", "256"];
    let arguments = [&["backbone"][..], &model, &place].concat();
    start(&name, "xomni-worker", &arguments, variables, folder)
}

fn start_decoder(etcd: &Etcd, variables: &[(&'static str, String)], folder: &Path) -> Process {
    let fixture = Fixture::open();
    let model = fixture.x_omni().display().to_string();
    let flux = fixture.flux().display().to_string();
    let etcd = &etcd.endpoints()[0];
    let arguments = [
        "decoder", "--model", &model, "--flux", &flux, "--etcd", etcd,
    ];
    start("decoder", "xomni-worker", &arguments, variables, folder)
}

/// A request of one picture, in a trace if there is one.
fn request(size: &str, trace: Option<&str>) -> Request<GenerateImagesRequest> {
    let mut request = Request::new(GenerateImagesRequest {
        prompt: "a lighthouse at night".into(),
        size: Some(size.into()),
        seed: Some(3),
        ..GenerateImagesRequest::default()
    });
    if let Some(trace) = trace {
        let parent = format!("00-{trace}-{CLIENT}-01").parse().expect("ascii");
        request.metadata_mut().insert("traceparent", parent);
    }
    request
}

async fn draw(
    channel: Channel,
    request: Request<GenerateImagesRequest>,
    mut on_event: impl FnMut(&Event),
) -> Result<Vec<u8>, Status> {
    let answer = ImagesClient::new(channel).generate(request).await?;
    let mut stream = answer.into_inner();
    let mut png = vec![];
    while let Some(message) = stream.message().await? {
        let event = message.event.expect("an event");
        if let Event::Picture(chunk) = &event {
            png.extend_from_slice(&chunk.data);
        }
        on_event(&event);
    }
    Ok(png)
}

/// Processes that export their spans, soon.
fn exporting(collector: &Collector) -> Vec<(&'static str, String)> {
    vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
        ("OTEL_BSP_SCHEDULE_DELAY", "50".into()),
    ]
}

/// Whether every part of one image has been exported, by both ranks.
fn complete(trace: &Trace) -> bool {
    let ranks: BTreeSet<_> = trace
        .named(BACKBONE, "rank")
        .map(|span| &span.pid)
        .collect();
    let has = |(service, name, _): &(&str, &str, &str)| trace.named(service, name).next().is_some();
    TREE.iter().all(has) && ranks.len() == 2 && trace.named(COORDINATOR, "request").count() == 1
}

/// One root, which is the client's; every other span is where it belongs, and begins after its
/// parent.
fn assert_tree(trace: &Trace) {
    let roots = trace.0.iter().filter(|span| span.parent == CLIENT);
    let roots: Vec<&str> = roots.map(|span| &*span.name).collect();
    assert_eq!(roots, ["request"], "\n{trace}");
    for (parent, child) in trace.edges() {
        let expected = (&*child.service, &*child.name, &*parent.name);
        assert!(TREE.contains(&expected), "{expected:?}\n{trace}");
        let (begin, end) = child.time;
        assert!(begin + TOLERANCE >= parent.time.0, "{expected:?}\n{trace}");
        assert!(begin <= end, "{expected:?}\n{trace}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_one_image_is_one_connected_tree() {
    let collector = Collector::start();
    let cluster = Cluster::start(exporting(&collector), &[]).await;
    let drawn = cluster.draw(request("64x64", Some(TRACE)), |_| ()).await;
    assert!(!drawn.expect("a picture").is_empty());
    let trace = collector.wait_for_trace(TRACE, complete);

    assert!(trace.orphans(CLIENT).is_empty(), "\n{trace}");
    assert_tree(&trace);
    assert!(!trace.0.iter().any(|span| span.failed), "\n{trace}");
    for (service, name, _) in TREE {
        let count = if name == "rank" { 2 } else { 1 };
        assert_eq!(trace.named(service, name).count(), count, "{name}\n{trace}");
    }
    let one = |service, name| trace.named(service, name).next().expect("complete");
    for (service, name, kind) in [
        (COORDINATOR, "request", SpanKind::Server),
        (COORDINATOR, "draw", SpanKind::Client),
        (COORDINATOR, "develop", SpanKind::Client),
        (BACKBONE, "Backbone.Generate", SpanKind::Server),
        (DECODER, "Decoder.Decode", SpanKind::Server),
    ] {
        assert_eq!(one(service, name).kind, kind, "{name}");
    }
    let ranks = trace.named(BACKBONE, "rank");
    let ranks: BTreeSet<_> = ranks.map(|span| &*span.attributes["rank"]).collect();
    assert_eq!(ranks, BTreeSet::from(["0", "1"]));
    // One after the other.
    for (service, parts) in [
        (BACKBONE, &["queue", "prefill", "decode"][..]),
        (DECODER, &["image tokens", "denoise", "vae", "png"]),
    ] {
        for pair in parts.windows(2) {
            let (first, then) = (one(service, pair[0]), one(service, pair[1]));
            assert!(first.time.1 <= then.time.0 + TOLERANCE, "{pair:?}");
        }
    }
    let steps = &one(DECODER, "denoise").events;
    assert_eq!(steps.len(), 4, "the checkpoint's number: {steps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_are_in_the_trace_of_their_image() {
    let collector = Collector::start();
    let mut cluster = Cluster::start(exporting(&collector), &[]).await;
    let mut request = request("256x256", Some(TRACE));
    request.get_mut().num_inference_steps = Some(20);
    let (mut rank_lost, mut decoder_lost) = (false, false);
    let drawn = draw(cluster.channel.clone(), request, |event| match event {
        Event::Drawing(drawing) if !rank_lost => {
            assert!(drawing.done < drawing.total, "drawn before the loss");
            rank_lost = true;
            cluster.lose_rank();
        }
        Event::Decoding(decoding) if decoding.part() == DecodePart::Denoise && !decoder_lost => {
            decoder_lost = true;
            cluster.lose_decoder();
        }
        _ => {}
    });
    assert!(!drawn.await.expect("a picture").is_empty());
    assert!(rank_lost && decoder_lost);
    let ended = |trace: &Trace| {
        let attempts = |name| trace.named(COORDINATOR, name).count();
        complete(trace) && attempts("draw") >= 2 && attempts("develop") >= 2
    };
    let trace = collector.wait_for_trace(TRACE, ended);

    assert_tree(&trace);
    for name in ["draw", "develop"] {
        let mut attempts: Vec<&Exported> = trace.named(COORDINATOR, name).collect();
        attempts.sort_by_key(|span| span.time);
        for (number, attempt) in attempts.iter().enumerate() {
            let last = number + 1 == attempts.len();
            assert_eq!(attempt.failed, !last, "{attempt:?}");
            assert_eq!(attempt.attributes["attempt"], number.to_string());
            assert!(!attempt.attributes["worker"].is_empty());
        }
        for pair in attempts.windows(2) {
            assert!(pair[0].time.1 <= pair[1].time.0 + TOLERANCE, "{trace}");
        }
    }
    // The first group exported what it had run; the killed rank could not.
    let failed = trace.named(BACKBONE, "rank").filter(|span| span.failed);
    assert!(failed.count() >= 1, "\n{trace}");
    // A killed process takes the spans that were open with it, and nobody else's.
    let survivors: BTreeSet<&str> = trace
        .0
        .iter()
        .filter(|span| span.name == "Decoder.Decode" || span.service != DECODER)
        .map(|span| &*span.pid)
        .collect();
    let orphans = trace.orphans(CLIENT);
    let killed = |span: &&Exported| !survivors.contains(&*span.pid);
    assert!(orphans.iter().all(killed), "\n{trace}");
    let log = cluster.coordinator.output();
    let mut retries = log.lines().filter(|line| line.contains("another follows"));
    assert!(
        retries.all(|line| line.matches(TRACE).count() == 1),
        "{log}"
    );
}

/// The only line of a log that names a trace; it names it once.
fn line_of<'a>(log: &'a str, trace: &str) -> &'a str {
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(trace)).collect();
    let [line] = lines[..] else {
        panic!("{lines:?} in\n{log}");
    };
    assert_eq!(line.matches(trace).count(), 1, "{line}");
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_logged_once_a_process_and_names_its_trace() {
    let quiet = vec![("RUST_LOG", "warn".to_owned())];
    let mut cluster = Cluster::start(quiet, &["--attempts", "1"]).await;
    let mut lost = false;
    let channel = cluster.channel.clone();
    let drawn = draw(channel, request("256x256", Some(TRACE)), |event| {
        if matches!(event, Event::Drawing(_)) && !lost {
            lost = true;
            cluster.lose_rank();
        }
    });
    let status = drawn.await.expect_err("one attempt");
    let told = status.metadata().get("x-trace-id").expect("told");
    assert_eq!(told, TRACE);
    let leader = wait_for("a line of the leader", || {
        let log = cluster.ranks[0].output();
        log.contains(TRACE).then_some(log)
    });
    assert!(line_of(&leader, TRACE).contains("job lost"));
    let log = cluster.coordinator.output();
    let line = line_of(&log, TRACE);
    assert!(
        line.contains("request failed") && line.contains("lost"),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_brings_no_trace_gets_one() {
    let cluster = Cluster::start(vec![], &[]).await;
    let refused = cluster.draw(request("60x60", None), |_| ()).await;
    let status = refused.expect_err("no size");
    let trace = status.metadata().get("x-trace-id").expect("told");
    let trace = trace.to_str().expect("ascii");
    assert_eq!(trace.len(), 32, "{trace}");
    let line = cluster.coordinator.output();
    assert!(line_of(&line, trace).contains("size"), "{line}");
    let answer = ImagesClient::new(cluster.channel.clone())
        .generate(request("16x16", Some(TRACE)))
        .await
        .expect("taken");
    assert_eq!(answer.metadata().get("x-trace-id").expect("told"), TRACE);
}
