//! `xomni-worker decoder` as an operator runs it.

use std::path::Path;

use tokio::sync::oneshot;
use tonic::transport::Endpoint;
use xomni_engine::text::Grid;
use xomni_tests::{
    golden::Fixture,
    metrics::Metrics,
    process::{Process, wait_for},
};
use xomni_worker::{
    api::{DecodeEvent, DecodeJob, Decoder},
    client::{Calls, RemoteDecoder, Target},
};

/// A decoder of the fixture.
fn start(folder: &Path, more: &[&str]) -> Process {
    let fixture = Fixture::open();
    let [model, flux] = [fixture.x_omni(), fixture.flux()].map(|path| path.display().to_string());
    let own = [
        "decoder",
        "--die-with-parent",
        "--model",
        &model,
        "--flux",
        &flux,
    ];
    let arguments = [&own, more].concat();
    Process::start("decoder", "xomni-worker", &arguments, &[], folder)
}

#[tokio::test]
async fn a_job_in_progress_survives_sigterm() {
    let folder = tempfile::tempdir().expect("folder");
    let arguments = ["--model-name", "tiny", "--metrics", "127.0.0.1:0"];
    let mut process = start(folder.path(), &arguments);
    let line = process.wait_for_line("decoder ready at ");
    let (address, metrics) = line.split_once(", metrics at ").expect("both addresses");
    let held = |jobs: f64| {
        let held = Metrics::read(metrics).expect("metrics");
        assert_eq!(held.get("xomni_decoder_jobs"), jobs);
    };
    held(0.0);
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let target = Target {
        model: "tiny".into(),
        ..Target::default()
    };
    let channel = endpoint.expect("an address").connect_lazy();
    let decoder = RemoteDecoder::new(channel, Calls::new(target));
    let job = DecodeJob {
        request_id: "r".into(),
        attempt: 0,
        prompt: "a red fox".into(),
        grid: Grid::new(1, 2),
        seed: 0,
        image_index: 0,
        steps: Some(1),
    };
    let (sender, codes) = oneshot::channel();
    let mut stream = decoder.decode(job.clone(), codes).await.expect("accepted");

    held(1.0);
    process.signal("TERM");
    wait_for("the drain", || {
        process.output().contains("drains").then_some(())
    });
    let (_late, codes) = oneshot::channel();
    let refused = decoder.decode(job, codes).await.expect_err("drains");
    assert!(refused.retryable(), "{refused}");

    sender.send(vec![1, 2]).expect("awaited");
    let png = loop {
        match stream.next().await.expect("developed").expect("a picture") {
            DecodeEvent::Progress(_) => {}
            DecodeEvent::Png(png) => break png,
        }
    };
    assert_eq!(image::load_from_memory(&png).expect("a PNG").width(), 32);
    drop((stream, decoder));
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn what_cannot_serve_says_why() {
    let folder = tempfile::tempdir().expect("folder");
    let mut process = start(folder.path(), &["--insecure", "--listen", "0.0.0.0:0"]);
    assert_eq!(process.wait().code(), Some(1));
    assert!(process.output().contains("--advertise"));
}
