//! A model behind its gRPC services gives what it gives in the caller's process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};
use tonic::service::Routes;
use xomni_cluster::record::WorkerState;
use xomni_engine::{
    Error,
    checkpoint::XOmniConfig,
    decode::{PictureDecoder, PictureEncoder, WeightsSource},
    ops::cpu::Cpu,
    sampling::SamplingParams,
    schedule::{Mode, OutputSpec},
    text::Grid,
};
use xomni_tests::{
    golden::Fixture,
    loopback::{Loopback, calls, identity},
};
use xomni_worker::{
    api::{
        Backbone, DecodeEvent, DecodeJob, Decoder, EncodeJob, Encoder, GenerateJob, JobStream,
        Progress, TokenFrame,
    },
    client::{RemoteBackbone, RemoteDecoder},
    convert::Standing,
    decoder::{LocalDecoder, LocalEncoder},
    local::{LocalConfig, LocalModel, PreparedModel},
    serve::{backbone_service, decoder_service},
};

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(30);

struct Cluster {
    local: Arc<LocalModel>,
    backbone: RemoteBackbone,
    decoder: RemoteDecoder,
    encoder: Arc<LocalEncoder<Cpu>>,
    standing: watch::Sender<Standing>,
    server: Loopback,
}

/// The tiny model, in this process and served: a small K/V cache, one job in the decoder's queue.
async fn serve() -> Cluster {
    let fixture = Fixture::open();
    let (model, flux) = (fixture.x_omni(), fixture.flux());
    let config = XOmniConfig::open(&model).expect("config");
    let values = 2 * config.backbone.layers * config.backbone.kv_heads * config.backbone.head_dim;
    let local = PreparedModel::open(LocalConfig {
        model: model.clone(),
        flux: flux.clone(),
        weights: WeightsSource::Checkpoint,
        ranks: 1,
        kv_bytes: 8192 * values * size_of::<f32>(),
        max_queue: 1,
    })
    .and_then(PreparedModel::load)
    .expect("model");
    let (ops, source) = (Arc::new(Cpu::new()), WeightsSource::Checkpoint);
    let decoder = PictureDecoder::open(ops.clone(), &model, &flux, &config, source);
    let decoder = LocalDecoder::bounded(Arc::new(decoder.expect("decoder")), 1).expect("thread");
    let encoder = PictureEncoder::open(ops, &model, &config, source).expect("encoder");
    let encoder = Arc::new(LocalEncoder::new(Arc::new(encoder), 1));
    let vocabulary = config.backbone.text_vocab + config.backbone.mm_vocab;
    let (standing, identity) = identity(vocabulary as u32);
    let local = Arc::new(local);
    let served = Arc::new(Served(local.clone()));
    let routes = Routes::new(backbone_service(served, identity.clone())).add_service(
        decoder_service(Arc::new(decoder), encoder.clone(), identity),
    );
    let server = Loopback::start(routes);
    Cluster {
        local,
        backbone: RemoteBackbone::new(server.channel(), calls()),
        decoder: RemoteDecoder::new(server.channel(), calls()),
        encoder,
        standing,
        server,
    }
}

/// The backbone that the test calls in its own process, too.
struct Served(Arc<LocalModel>);

impl Backbone for Served {
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>, Error> {
        self.0.backbone.generate(job).await
    }
}

fn image_job(local: &LocalModel, grid: Grid) -> GenerateJob {
    let prompt = local.tokenizer.image_prompt("a red fox", grid);
    GenerateJob {
        request_id: "fox".into(),
        attempt: 0,
        priority: 0,
        mode: Mode::Image,
        prompt: prompt.expect("prompt"),
        negative_prompt: Some(local.tokenizer.negative_prompt(grid).expect("prompt")),
        sampling: SamplingParams {
            temperature: 1.0,
            top_k: 50,
            guidance_scale: 2.0,
            ..SamplingParams::GREEDY
        },
        seed: u64::MAX,
        outputs: [0, 3]
            .map(|image_index| OutputSpec {
                image_index,
                forced: vec![],
            })
            .to_vec(),
        max_tokens: grid.tokens(),
        stop_ids: vec![],
        deadline: None,
        log_probs: true,
    }
}

/// Tokens and log-probabilities of each output.
async fn drawn(mut stream: JobStream<TokenFrame>) -> Vec<(Vec<u32>, Vec<f32>)> {
    let mut outputs = vec![(vec![], vec![]); 2];
    while let Some(frame) = stream.next().await.expect("drawn") {
        outputs[frame.output].0.extend(frame.tokens);
        outputs[frame.output].1.extend(frame.log_probs);
    }
    outputs
}

fn decode_job(grid: Grid) -> DecodeJob {
    DecodeJob {
        request_id: "fox".into(),
        attempt: 0,
        prompt: "a red fox".into(),
        grid,
        seed: u64::MAX,
        image_index: 3,
        steps: Some(2),
    }
}

async fn developed(decoder: &impl Decoder, job: DecodeJob) -> (Vec<Progress>, Vec<u8>) {
    let (sender, codes) = oneshot::channel();
    let grid = job.grid;
    let mut stream = decoder.decode(job, codes).await.expect("accepted");
    sender.send(codes_of(grid)).expect("awaited");
    let mut progress = vec![];
    loop {
        match stream.next().await.expect("developed").expect("a picture") {
            DecodeEvent::Progress(part) => progress.push(part),
            DecodeEvent::Png(png) => return (progress, png),
        }
    }
}

fn codes_of(grid: Grid) -> Vec<u32> {
    (0..grid.tokens() as u32).map(|i| i % 7).collect()
}

/// Tries until `attempt` gives something.
async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(done) = attempt().await {
            return done;
        }
        assert!(start.elapsed() < SOON, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_pictures_are_those_of_the_local_services() {
    let cluster = serve().await;
    let grid = Grid::new(4, 6);
    let job = image_job(&cluster.local, grid);
    let local = cluster.local.backbone.generate(job.clone()).await;
    let local = drawn(local.expect("accepted")).await;
    let remote = cluster.backbone.generate(job.clone()).await;
    assert_eq!(drawn(remote.expect("accepted")).await, local);
    assert!(local.iter().all(|(tokens, _)| tokens.len() == 24));

    let mut resumed = job;
    for (output, (tokens, _)) in resumed.outputs.iter_mut().zip(&local) {
        output.forced = tokens[..10].to_vec();
    }
    let rest = drawn(cluster.backbone.generate(resumed).await.expect("accepted")).await;
    for ((rest, _), (whole, _)) in rest.iter().zip(&local) {
        assert_eq!(rest, &whole[10..]);
    }

    let job = decode_job(grid);
    let local = developed(&cluster.local.decoder, job.clone()).await;
    assert_eq!(developed(&cluster.decoder, job).await, local);
    let denoise = |step| Progress::Denoise { step, of: 2 };
    let parts = [Progress::Encode, denoise(0), denoise(1), Progress::Vae];
    assert_eq!(local.0, parts);

    let picture = std::fs::read(Fixture::open().path("images/picture_1.png"));
    let picture = picture.expect("a picture");
    let local = cluster
        .encoder
        .encode(encode_job(picture.clone()))
        .await
        .expect("read");
    assert_eq!(
        cluster
            .decoder
            .encode(encode_job(picture))
            .await
            .expect("read"),
        local
    );
}

fn encode_job(picture: Vec<u8>) -> EncodeJob {
    EncodeJob {
        request_id: "read".into(),
        picture: picture.into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_jobs_free_their_places() {
    let cluster = serve().await;
    let long = || async {
        let mut job = image_job(&cluster.local, Grid::new(60, 60));
        job.outputs.truncate(1);
        cluster.backbone.generate(job).await
    };
    // One runs, one waits, none is left to take a third.
    let mut running = long().await.expect("accepted");
    running.next().await.expect("runs").expect("a frame");
    let waiting = long().await.expect("accepted");
    let refused = long().await.expect_err("full");
    assert!(
        matches!(refused, Error::Capacity { what: "queue", .. }),
        "{refused}"
    );
    drop((running, waiting));
    let mut next = eventually("a place", async || long().await.ok()).await;
    next.next().await.expect("runs").expect("a frame");

    // A job holds its place from the moment it is known.
    let grid = Grid::new(2, 2);
    let begin = || async {
        let (sender, codes) = oneshot::channel();
        Ok::<_, Error>((
            cluster.decoder.decode(decode_job(grid), codes).await?,
            sender,
        ))
    };
    let first = begin().await.expect("accepted");
    let (mut second, unsent) = begin().await.expect("accepted");
    let refused = begin().await.expect_err("full");
    assert!(
        matches!(
            refused,
            Error::Capacity {
                what: "decoder queue",
                ..
            }
        ),
        "{refused}"
    );
    drop(first);
    let third = eventually("a place", async || begin().await.ok()).await;
    drop(unsent);
    let cancelled = second.next().await.expect_err("cancelled");
    assert!(matches!(cancelled, Error::Cancelled), "{cancelled}");
    drop((second, third));
    eventually("a place", async || begin().await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_overtakes_those_whose_codes_are_not_there() {
    let cluster = serve().await;
    let (_unsent, codes) = oneshot::channel();
    let waiting = cluster
        .decoder
        .decode(decode_job(Grid::new(2, 2)), codes)
        .await;
    let job = decode_job(Grid::new(2, 3));
    assert!(!developed(&cluster.decoder, job).await.1.is_empty());
    drop(waiting);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_comes_back_by_field_and_harms_nothing() {
    let cluster = serve().await;
    let grid = Grid::new(2, 2);
    let mut job = image_job(&cluster.local, grid);
    job.prompt = vec![0; 9000];
    let refused = cluster
        .backbone
        .generate(job.clone())
        .await
        .expect_err("too long");
    let local = cluster
        .local
        .backbone
        .generate(job)
        .await
        .expect_err("too long");
    assert_eq!(refused.to_string(), local.to_string());

    let (sender, codes) = oneshot::channel();
    let stream = cluster.decoder.decode(decode_job(grid), codes).await;
    sender.send(vec![u32::MAX; 4]).expect("awaited");
    let mut stream = stream.expect("accepted");
    let refused = loop {
        match stream.next().await {
            Ok(Some(DecodeEvent::Progress(_))) => {}
            Err(refused) => break refused,
            other => panic!("{other:?}"),
        }
    };
    assert!(
        matches!(
            refused,
            Error::BadInput {
                field: "tokens",
                ..
            }
        ),
        "{refused}"
    );
    let refused = cluster
        .decoder
        .encode(encode_job(b"no picture".to_vec()))
        .await
        .expect_err("no picture");
    assert!(
        matches!(refused, Error::BadInput { field: "image", .. }),
        "{refused}"
    );
    let refused = cluster
        .decoder
        .encode(encode_job(vec![0; 33 << 20]))
        .await
        .expect_err("too large");
    assert!(
        matches!(refused, Error::BadInput { field: "image", .. }),
        "{refused}"
    );

    let job = image_job(&cluster.local, grid);
    drawn(cluster.backbone.generate(job).await.expect("accepted")).await;
    developed(&cluster.decoder, decode_job(grid)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_drains_or_has_another_model_takes_no_picture() {
    let cluster = serve().await;
    let picture = std::fs::read(Fixture::open().path("images/picture_1.png"));
    let job = encode_job(picture.expect("a picture"));
    let mut other = calls();
    other.target.model = "another".into();
    let elsewhere = RemoteDecoder::new(cluster.server.channel(), other);
    let refused = elsewhere.encode(job.clone()).await.expect_err("another");
    assert!(refused.retryable(), "{refused}");
    assert!(refused.to_string().contains("another"), "{refused}");
    cluster.decoder.encode(job.clone()).await.expect("read");

    let drains = |standing: &mut Standing| standing.state = WorkerState::Draining;
    cluster.standing.send_modify(drains);
    let refused = cluster.decoder.encode(job).await.expect_err("drains");
    assert!(refused.retryable(), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_job_on_both_sides() {
    let cluster = serve().await;
    let mut job = image_job(&cluster.local, Grid::new(60, 60));
    job.outputs.truncate(1);
    job.deadline = Some(Instant::now() + Duration::from_millis(300));
    let mut stream = cluster
        .backbone
        .generate(job.clone())
        .await
        .expect("accepted");
    let ended = loop {
        match stream.next().await {
            Ok(frame) => assert!(frame.is_some(), "ended before its deadline"),
            Err(error) => break error,
        }
    };
    assert!(matches!(ended, Error::DeadlineExceeded), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_or_draining_server_is_worth_another_attempt_elsewhere() {
    let Cluster {
        local,
        backbone,
        standing,
        server,
        ..
    } = serve().await;
    let mut job = image_job(&local, Grid::new(60, 60));
    job.outputs.truncate(1);
    let mut stream = backbone.generate(job.clone()).await.expect("accepted");
    stream.next().await.expect("runs").expect("a frame");

    standing.send_modify(|standing| standing.state = WorkerState::Draining);
    let draining = backbone.generate(job.clone()).await.expect_err("drains");
    assert!(draining.retryable(), "{draining}");

    drop(server);
    let lost = loop {
        match stream.next().await {
            Ok(frame) => assert!(frame.is_some(), "ended as if complete"),
            Err(error) => break error,
        }
    };
    assert!(lost.retryable(), "{lost}");
    let refused = backbone.generate(job).await.expect_err("nobody listens");
    assert!(refused.retryable(), "{refused}");
}
