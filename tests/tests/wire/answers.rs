//! Servers that are silent, late or confused.

use std::time::Duration;

use xomni_tests::loopback::calls;
use xomni_worker::{
    api::DecodeEvent,
    client::{Calls, Patience, RemoteBackbone, RemoteDecoder},
};

use crate::stage::{Stage, frame, soon};

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
    let (events, sender, mut stream) = stage.develop(&decoder).await;
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
        let (events, sender, mut stream) = stage.develop(&decoder).await;
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
