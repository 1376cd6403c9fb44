//! What other versions, strangers and broken programs send to real processes is refused by name,
//! and harms nobody.

use std::{io::Write, net::TcpStream};

use tonic::{Code, Status};
use xomni_cluster::record::{Load, Role, WorkerRecord, WorkerState};
use xomni_proto::{
    PROTOCOL_VERSION,
    worker::{
        DecodeInput, DecodeJob, FollowerFrame, GenerateRequest, Heartbeat, Join, Mode, Output,
        Sampling, backbone_client::BackboneClient, decode_input::Input,
        decoder_client::DecoderClient, follower_frame::Frame, ranks_client::RanksClient,
    },
};
use xomni_tests::{
    cluster::{Cluster, Member, Shape, in_time},
    drawing::{Drawing, alone},
};

use crate::{long, short};

/// A job of a few tokens for whoever serves `x-omni`, as workers call the model of that directory.
fn job(protocol_version: u32) -> GenerateRequest {
    GenerateRequest {
        protocol_version,
        request_id: "stranger".into(),
        model: "x-omni".into(),
        mode: Mode::Image.into(),
        prompt: vec![1, 2, 3],
        sampling: Some(Sampling {
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.0,
            guidance_scale: 1.0,
        }),
        outputs: vec![Output::default()],
        max_tokens: 2,
        ..GenerateRequest::default()
    }
}

/// The end of a job: the number of its tokens, or why there are none.
async fn generate(leader: &Member, job: GenerateRequest) -> Result<usize, Status> {
    let mut client = BackboneClient::new(leader.channel());
    let mut frames = client.generate(job).await?.into_inner();
    let mut tokens = 0;
    while let Some(frame) = frames.message().await? {
        tokens += frame.tokens.len();
    }
    Ok(tokens)
}

async fn decode(decoder: &Member, protocol_version: u32) -> Status {
    let job = DecodeJob {
        protocol_version,
        request_id: "stranger".into(),
        model: "x-omni".into(),
        prompt: "a".into(),
        height: 1,
        width: 1,
        ..DecodeJob::default()
    };
    let input = DecodeInput {
        input: Some(Input::Job(job)),
    };
    let mut client = DecoderClient::new(decoder.channel());
    match client.decode(tokio_stream::iter([input])).await {
        Err(status) => status,
        Ok(events) => {
            let mut events = events.into_inner();
            loop {
                match events.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::ok("ended"),
                    Err(status) => return status,
                }
            }
        }
    }
}

/// What the leader of a group answers to a first frame.
async fn follow(leader: &Member, frame: FollowerFrame) -> Status {
    let mut client = RanksClient::new(leader.channel());
    let answer = client.follow(tokio_stream::iter([frame])).await;
    let first = match answer {
        Ok(frames) => frames.into_inner().message().await,
        Err(status) => Err(status),
    };
    first.expect_err("refused")
}

fn join(epoch: u64) -> FollowerFrame {
    FollowerFrame {
        epoch,
        frame: Some(Frame::Join(Join {
            protocol_version: PROTOCOL_VERSION,
            group: "0".into(),
            secret: vec![7; 64].into(),
            first_rank: 1,
            ranks: 1,
            fingerprint: "another".into(),
            collective: vec!["127.0.0.1:1".into()],
            blocks: 1,
        })),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_by_name_and_harm_nobody() {
    let (of_long, of_short) = (alone(&long()).await, alone(&short()).await);
    let cluster = Cluster::start(Shape::new(1, 2, 1)).await;
    let (leader, decoder) = (&cluster.groups[0][0], &cluster.decoders[0]);
    let epoch = cluster.status().await.groups[0].epoch;
    let mut drawing = Drawing::begin(&cluster.channel, long())
        .await
        .expect("taken");
    drawing.tokens(1).await.expect("draws");

    // Versions: two adjacent ones work together, others are refused.
    for version in [0, PROTOCOL_VERSION + 2, u32::MAX] {
        let refused = generate(leader, job(version)).await.expect_err("refused");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(
            refused.message().contains("protocol version"),
            "{refused:?}"
        );
        let refused = decode(decoder, version).await;
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    }
    let adjacent = in_time("a job", generate(leader, job(PROTOCOL_VERSION + 1))).await;
    assert_eq!(adjacent.expect("understood"), 2);

    // Frames of another epoch than the one that runs, or of this one and too late.
    for late in [epoch - 1, epoch, epoch + 1] {
        let refused = in_time("an answer", follow(leader, join(late))).await;
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("epoch"), "{refused:?}");
    }
    let heartbeat = FollowerFrame {
        epoch: epoch - 1,
        frame: Some(Frame::Heartbeat(Heartbeat {})),
    };
    for (frame, code) in [
        (heartbeat, Code::FailedPrecondition),
        (FollowerFrame::default(), Code::InvalidArgument),
    ] {
        let refused = in_time("an answer", follow(leader, frame)).await;
        assert_eq!(refused.code(), code, "{refused:?}");
    }
    let mut other_epoch = job(PROTOCOL_VERSION);
    other_epoch.epoch = epoch + 1;
    let refused = generate(leader, other_epoch).await.expect_err("refused");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");

    // Malformed and oversized.
    let mut malformed = job(PROTOCOL_VERSION);
    malformed.prompt = vec![u32::MAX];
    let refused = generate(leader, malformed).await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let mut oversized = job(PROTOCOL_VERSION);
    oversized.request_id = "x".repeat(64 << 20);
    let refused = generate(leader, oversized).await.expect_err("refused");
    assert_ne!(refused.code(), Code::Ok, "{refused:?}");
    let members = [leader, &cluster.groups[0][1], decoder, &cluster.coordinator];
    for member in members {
        for junk in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0xff; 4096],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x00",
        ] {
            let mut connection = TcpStream::connect(&member.address).expect("connected");
            connection.write_all(junk).expect("written");
        }
    }

    // A worker of a version that nobody here speaks is seen and gets no work.
    let cluster_of = xomni_cluster::Cluster::connect(&cluster.etcd.endpoints(), "default");
    let registration = cluster_of.expect("endpoints").register(WorkerRecord {
        id: "newer".into(),
        address: "127.0.0.1:1".into(),
        protocol_version: PROTOCOL_VERSION + 2,
        model: "x-omni".into(),
        fingerprint: "f".into(),
        state: WorkerState::Ready,
        role: Role::Decoder,
        load: Load {
            rate: 1e9,
            ..Load::default()
        },
    });
    let seen = cluster
        .until("the newer worker", |status| {
            status.decoders.iter().any(|one| one.id == "newer")
        })
        .await;
    let newer = seen.decoders.iter().find(|one| one.id == "newer");
    assert!(newer.is_some_and(|one| !one.takes_work), "{newer:?}");
    let picture = in_time("a picture", cluster.draw(short())).await;
    assert!(picture.expect("a picture") == of_short);
    registration.withdraw().await;

    let pictures = in_time("the pictures in flight", drawing.pictures()).await;
    assert!(pictures.expect("undisturbed") == of_long);
    assert_eq!(cluster.status().await.groups[0].epoch, epoch);
    let metrics = cluster.coordinator.metrics();
    assert_eq!(metrics.get("xomni_retries_total{stage=\"backbone\"}"), 0.0);
}
