//! What may go wrong between two processes: requests that nobody of ours sends, servers that are
//! silent, late or confused. Each is refused by name, and the service goes on.

use std::{io::Write, net::TcpStream, sync::Arc, time::Duration};

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_stream::StreamExt;
use tonic::{Code, Request, service::Routes, transport::Channel};
use xomni_engine::{
    Error, Result,
    sampling::SamplingParams,
    schedule::{FinishReason, Mode, OutputSpec},
    text::Grid,
};
use xomni_proto::worker::{
    self as wire, DecodeInput, GenerateRequest, PictureInput, backbone_client::BackboneClient,
    decode_input::Input, decoder_client::DecoderClient,
};
use xomni_tests::loopback::{Loopback, calls, identity};
use xomni_worker::{
    api::{
        Backbone, DecodeEvent, DecodeJob, Decoder, EncodeJob, Encoder, GenerateJob, JobStream,
        TokenFrame,
    },
    client::{Calls, Patience, RemoteBackbone, RemoteDecoder},
    convert::{Standing, backbone as convert},
    serve::{backbone_service, decoder_service},
};

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(30);
const TOKENS: usize = 4;

type Frames = mpsc::Sender<Result<TokenFrame>>;

/// A backbone whose frames the test writes.
#[derive(Debug)]
struct Scripted(mpsc::Sender<Frames>);

impl Backbone for Scripted {
    async fn generate(&self, _: GenerateJob) -> Result<JobStream<TokenFrame>> {
        let (frames, stream) = mpsc::channel(8);
        self.0.send(frames).await.expect("the test takes it");
        Ok(JobStream::new(stream))
    }
}

/// A decoder whose events the test writes, and an encoder that counts bytes.
#[derive(Debug)]
struct Darkroom(mpsc::Sender<mpsc::Sender<Result<DecodeEvent>>>);

impl Decoder for Darkroom {
    async fn decode(
        &self,
        _: DecodeJob,
        _: oneshot::Receiver<Vec<u32>>,
    ) -> Result<JobStream<DecodeEvent>> {
        let (events, stream) = mpsc::channel(8);
        self.0.send(events).await.expect("the test takes it");
        Ok(JobStream::new(stream))
    }
}

impl Encoder for Darkroom {
    async fn encode(&self, job: EncodeJob) -> Result<(Grid, Vec<u32>)> {
        Ok((Grid::new(1, 1), vec![job.picture.len() as u32]))
    }
}

struct Stage {
    server: Loopback,
    standing: tokio::sync::watch::Sender<Standing>,
    generations: Mutex<mpsc::Receiver<Frames>>,
    developments: Mutex<mpsc::Receiver<mpsc::Sender<Result<DecodeEvent>>>>,
}

impl Stage {
    fn set() -> Self {
        let (standing, identity) = identity(100);
        let (backbone, generations) = mpsc::channel(8);
        let (darkroom, developments) = mpsc::channel(8);
        let darkroom = Arc::new(Darkroom(darkroom));
        let backbone = backbone_service(Arc::new(Scripted(backbone)), identity.clone());
        let decoder = decoder_service(darkroom.clone(), darkroom, identity);
        Self {
            server: Loopback::start(Routes::new(backbone).add_service(decoder)),
            standing,
            generations: Mutex::new(generations),
            developments: Mutex::new(developments),
        }
    }

    fn channel(&self) -> Channel {
        self.server.channel()
    }

    /// Starts a job and returns both of its ends.
    async fn generate(&self, backbone: &RemoteBackbone) -> (Frames, JobStream<TokenFrame>) {
        let stream = backbone.generate(job()).await.expect("accepted");
        let frames = self.generations.lock().await.recv().await;
        (frames.expect("a generation"), stream)
    }
}

fn job() -> GenerateJob {
    GenerateJob {
        request_id: "r".into(),
        attempt: 0,
        priority: 0,
        mode: Mode::Image,
        prompt: vec![1],
        negative_prompt: None,
        sampling: SamplingParams::GREEDY,
        seed: 0,
        outputs: vec![OutputSpec {
            image_index: 0,
            forced: vec![],
        }],
        max_tokens: TOKENS,
        stop_ids: vec![],
        deadline: None,
        log_probs: false,
    }
}

fn frame(tokens: std::ops::Range<u32>) -> TokenFrame {
    TokenFrame {
        output: 0,
        first: tokens.start,
        finished: (tokens.end == TOKENS as u32).then_some(FinishReason::Length),
        tokens: tokens.collect(),
        log_probs: vec![],
    }
}

fn decode_job() -> wire::DecodeJob {
    wire::DecodeJob {
        protocol_version: 1,
        request_id: "r".into(),
        model: "tiny".into(),
        height: 1,
        width: 2,
        ..Default::default()
    }
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(SOON, work).await;
    waited.unwrap_or_else(|_| panic!("never: {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_out_of_range_are_refused_by_field() {
    let stage = Stage::set();
    let mut client = BackboneClient::new(stage.channel()).max_encoding_message_size(64 << 20);
    type Change = fn(&mut GenerateRequest);
    let cases: [(Change, Code, &str); 14] = [
        (
            |r| r.protocol_version = 3,
            Code::FailedPrecondition,
            "protocol version: 3",
        ),
        (
            |r| r.model = "other".into(),
            Code::FailedPrecondition,
            "model: other",
        ),
        (|r| r.epoch = 9, Code::FailedPrecondition, "epoch: 9"),
        (
            |r| r.model.clear(),
            Code::InvalidArgument,
            "model: must not be empty",
        ),
        (
            |r| r.request_id = "a\nb".into(),
            Code::InvalidArgument,
            "request_id: must be 1 to 128",
        ),
        (
            |r| r.adapter = "a".into(),
            Code::InvalidArgument,
            "adapter: must be empty, got a",
        ),
        (
            |r| r.mode = 7,
            Code::InvalidArgument,
            "mode: must be MODE_IMAGE",
        ),
        (
            |r| r.sampling = None,
            Code::InvalidArgument,
            "sampling: must be given",
        ),
        (
            |r| r.sampling.as_mut().expect("given").temperature = f32::NAN,
            Code::InvalidArgument,
            "temperature: must be 0 to 100, got NaN",
        ),
        (
            |r| r.prompt = vec![100],
            Code::InvalidArgument,
            "prompt: token ids below 100, got 100",
        ),
        (
            |r| r.negative_prompt = vec![1],
            Code::InvalidArgument,
            "negative_prompt: must be given",
        ),
        (
            |r| r.outputs.clear(),
            Code::InvalidArgument,
            "outputs: must be 1 to 64 of them, got 0",
        ),
        (
            |r| r.outputs[0].forced = vec![1; 5],
            Code::InvalidArgument,
            "forced: must be 0 to 4",
        ),
        (
            |r| r.prompt = vec![1 << 28; 1 << 20],
            Code::OutOfRange,
            "too large",
        ),
    ];
    for (change, code, text) in cases {
        let mut request = convert::request(job(), &calls().target);
        change(&mut request);
        let refused = client.generate(request).await.expect_err(text);
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(text), "{text} in {refused}");
    }
    let mut request = Request::new(convert::request(job(), &calls().target));
    let wrong = "soon".parse().expect("ascii");
    request.metadata_mut().insert("grpc-timeout", wrong);
    let refused = client.generate(request).await.expect_err("no duration");
    assert_eq!(refused.code(), Code::InvalidArgument);

    // The service has not been harmed.
    let backbone = RemoteBackbone::new(stage.channel(), calls());
    let (frames, mut stream) = soon("a job", stage.generate(&backbone)).await;
    frames.send(Ok(frame(0..4))).await.expect("read");
    assert_eq!(stream.next().await.expect("drawn"), Some(frame(0..4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn decodes_out_of_order_or_range_are_refused() {
    let stage = Stage::set();
    let mut client = DecoderClient::new(stage.channel());
    let job = |change: fn(&mut wire::DecodeJob)| {
        let mut job = decode_job();
        change(&mut job);
        Input::Job(job)
    };
    let tokens = |codes| Input::Tokens(wire::ImageTokens { codes });
    let cases: [(Vec<Input>, Code, &str); 8] = [
        (
            vec![],
            Code::InvalidArgument,
            "input: must begin with a job",
        ),
        (
            vec![tokens(vec![1, 2])],
            Code::InvalidArgument,
            "input: must begin with a job",
        ),
        (
            vec![job(|j| j.height = 0)],
            Code::InvalidArgument,
            "height: must be 1 to 256",
        ),
        (
            vec![job(|j| j.width = u32::MAX)],
            Code::InvalidArgument,
            "width: must be 1 to 256",
        ),
        (
            vec![job(|j| j.steps = 1001)],
            Code::InvalidArgument,
            "steps: must be at most 1000",
        ),
        (
            vec![job(|j| j.protocol_version = 0)],
            Code::FailedPrecondition,
            "protocol version: 0",
        ),
        (
            vec![job(|_| {}), job(|_| {})],
            Code::InvalidArgument,
            "then its tokens",
        ),
        (
            vec![job(|_| {}), tokens(vec![1])],
            Code::InvalidArgument,
            "codes: must be 2, one a cell",
        ),
    ];
    for (inputs, code, text) in cases {
        let inputs = inputs
            .into_iter()
            .map(|input| DecodeInput { input: Some(input) });
        let refused = match client.decode(tokio_stream::iter(inputs)).await {
            Err(refused) => refused,
            Ok(events) => {
                let mut events = events.into_inner();
                soon(text, events.next())
                    .await
                    .expect("an answer")
                    .expect_err(text)
            }
        };
        assert_eq!(refused.code(), code, "{text}: {refused}");
        assert!(refused.message().contains(text), "{text} in {refused}");
    }
    // Half a job is a cancelled one.
    let inputs = [DecodeInput {
        input: Some(job(|_| {})),
    }];
    let events = client
        .decode(tokio_stream::iter(inputs))
        .await
        .expect("accepted");
    let ended = soon("its end", events.into_inner().next())
        .await
        .expect("an answer");
    assert_eq!(ended.expect_err("cancelled").code(), Code::Cancelled);

    let large = [PictureInput {
        chunk: vec![0; (1 << 20) + 1].into(),
        ..PictureInput::default()
    }];
    let refused = client
        .encode(tokio_stream::iter(large))
        .await
        .expect_err("too large");
    assert!(
        refused.message().contains("chunk: must be at most 1048576"),
        "{refused}"
    );
    let chunks = [vec![0; 1 << 20], vec![0; 5]].map(|chunk| PictureInput {
        chunk: chunk.into(),
        request_id: "read".into(),
        ..PictureInput::default()
    });
    let read = client
        .encode(tokio_stream::iter(chunks))
        .await
        .expect("read");
    assert_eq!(read.into_inner().codes, [(1 << 20) + 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_old_epochs_and_out_of_order_end_their_job() {
    let stage = Stage::set();
    let backbone = RemoteBackbone::new(stage.channel(), calls());
    let (old, mut old_stream) = soon("a job", stage.generate(&backbone)).await;
    old.send(Ok(frame(0..1))).await.expect("read");
    assert!(old_stream.next().await.is_ok());

    stage.standing.send_modify(|standing| standing.epoch = 2);
    let (new, mut new_stream) = soon("a job", stage.generate(&backbone)).await;
    new.send(Ok(frame(0..2))).await.expect("read");
    assert!(new_stream.next().await.is_ok());
    old.send(Ok(frame(1..2))).await.expect("read");
    let refused = soon("a refusal", old_stream.next())
        .await
        .expect_err("an old epoch");
    assert!(
        refused.to_string().contains("a frame of epoch 1 after 2"),
        "{refused}"
    );
    assert!(refused.retryable());

    new.send(Ok(frame(1..3))).await.expect("read");
    let refused = soon("a refusal", new_stream.next())
        .await
        .expect_err("out of order");
    assert!(
        refused.to_string().contains("begins at 1 instead of 2"),
        "{refused}"
    );
    // The job that went wrong is cancelled at its worker.
    soon("the end of the call", new.closed()).await;

    let (short, mut stream) = soon("a job", stage.generate(&backbone)).await;
    short.send(Ok(frame(0..2))).await.expect("read");
    drop(short);
    assert!(stream.next().await.is_ok());
    let ended = soon("an end", stream.next()).await.expect_err("unfinished");
    assert!(
        ended.to_string().contains("before its last frame"),
        "{ended}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_worker_is_lost() {
    let stage = Stage::set();
    let short = Duration::from_millis(50);
    let with = |change: fn(&mut Patience, Duration)| {
        let mut calls: Calls = calls();
        change(&mut calls.patience, short);
        calls
    };
    let backbone = RemoteBackbone::new(stage.channel(), with(|p, short| p.first = short));
    let (frames, mut stream) = soon("a job", stage.generate(&backbone)).await;
    let lost = soon("a loss", stream.next()).await.expect_err("no frame");
    assert!(
        lost.retryable() && lost.to_string().contains("overdue"),
        "{lost}"
    );
    soon("the end of the call", frames.closed()).await;

    let backbone = RemoteBackbone::new(stage.channel(), with(|p, short| p.progress = short));
    let (frames, mut stream) = soon("a job", stage.generate(&backbone)).await;
    frames.send(Ok(frame(0..1))).await.expect("read");
    assert!(stream.next().await.is_ok());
    let lost = soon("a loss", stream.next())
        .await
        .expect_err("no further frame");
    assert!(lost.retryable(), "{lost}");

    let decoder = RemoteDecoder::new(stage.channel(), with(|p, short| p.first = short));
    let (sender, codes) = oneshot::channel();
    let job = DecodeJob {
        request_id: "r".into(),
        attempt: 0,
        prompt: String::new(),
        grid: Grid::new(1, 2),
        seed: 0,
        image_index: 0,
        steps: None,
    };
    let mut stream = decoder.decode(job, codes).await.expect("accepted");
    let events = stage
        .developments
        .lock()
        .await
        .recv()
        .await
        .expect("a development");
    // Before its codes are there a picture is not overdue.
    let waits = tokio::time::timeout(4 * short, stream.next()).await;
    assert!(waits.is_err(), "{waits:?}");
    sender.send(vec![1, 2]).expect("awaited");
    let lost = soon("a loss", stream.next()).await.expect_err("no event");
    assert!(lost.retryable(), "{lost}");
    soon("the end of the call", events.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_png_comes_whole_or_not_at_all() {
    let stage = Stage::set();
    let decoder = RemoteDecoder::new(stage.channel(), calls());
    let png: Vec<u8> = (0..1_050_000u32).map(|i| (i % 251) as u8).collect();
    for (png, whole) in [(png, true), (vec![1; 3 << 20], false)] {
        let (sender, codes) = oneshot::channel();
        let job = DecodeJob {
            request_id: "r".into(),
            attempt: 0,
            prompt: String::new(),
            grid: Grid::new(1, 2),
            seed: 0,
            image_index: 0,
            steps: None,
        };
        let mut stream = decoder.decode(job, codes).await.expect("accepted");
        let events = stage
            .developments
            .lock()
            .await
            .recv()
            .await
            .expect("a development");
        sender.send(vec![1, 2]).expect("awaited");
        events
            .send(Ok(DecodeEvent::Png(png.clone())))
            .await
            .expect("read");
        drop(events);
        let came = soon("a picture", stream.next()).await;
        match whole {
            true => assert_eq!(came.expect("whole"), Some(DecodeEvent::Png(png))),
            // No picture of two tokens is that large.
            false => assert!(came.is_err_and(|error| error.retryable())),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_grpc_harm_nobody() {
    let stage = Stage::set();
    let backbone = RemoteBackbone::new(stage.channel(), calls());
    let (frames, mut stream) = soon("a job", stage.generate(&backbone)).await;
    for junk in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00",
    ] {
        let mut connection = TcpStream::connect(stage.server.address).expect("connected");
        connection.write_all(junk).expect("written");
    }
    frames.send(Ok(frame(0..4))).await.expect("read");
    assert_eq!(stream.next().await.expect("drawn"), Some(frame(0..4)));
    frames.send(Err(Error::Cancelled)).await.expect("read");
    let ended = soon("an end", stream.next()).await.expect_err("cancelled");
    assert!(matches!(ended, Error::Cancelled), "{ended}");
}
