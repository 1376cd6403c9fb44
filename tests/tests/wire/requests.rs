//! Requests that nobody of ours sends.

use std::{io::Write, net::TcpStream};

use tokio_stream::StreamExt;
use tonic::{Code, Request};
use xomni_engine::Error;
use xomni_proto::worker::{
    self as wire, DecodeInput, GenerateRequest, PictureInput, backbone_client::BackboneClient,
    decode_input::Input, decoder_client::DecoderClient,
};
use xomni_tests::loopback::calls;
use xomni_worker::{client::RemoteBackbone, convert::backbone as convert};

use crate::stage::{Stage, frame, job, soon};

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
