//! `xomni-worker decoder` as an operator runs it.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
};

use tokio::sync::oneshot;
use tonic::transport::Endpoint;
use xomni_engine::text::Grid;
use xomni_tests::{golden::Fixture, process::binary};
use xomni_worker::{
    api::{DecodeEvent, DecodeJob, Decoder},
    client::{Calls, RemoteDecoder, Target},
};

/// A process that does not outlive the test.
struct Process {
    child: Child,
    /// The line it printed.
    line: String,
}

impl Process {
    fn start(arguments: &[&str]) -> Self {
        let fixture = Fixture::open();
        let mut child = Command::new(binary("xomni-worker"))
            .args(["decoder", "--die-with-parent"])
            .arg("--model")
            .arg(fixture.x_omni())
            .arg("--flux")
            .arg(fixture.flux())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("xomni-worker runs");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        Self { child, line }
    }

    fn stop(&self) {
        let id = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &id]).status();
        assert!(killed.expect("kill runs").success());
    }

    fn address(&self) -> &str {
        let after = self.line.strip_prefix("decoder ready at ");
        let after = after.unwrap_or_else(|| panic!("{:?}", self.line));
        after.split([',', '\n']).next().expect("an address")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_job_in_progress_survives_sigterm() {
    let mut process = Process::start(&["--model-name", "tiny", "--metrics", "127.0.0.1:0"]);
    assert!(process.line.contains(", metrics at http://127.0.0.1:"));
    let endpoint = Endpoint::from_shared(format!("http://{}", process.address()));
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

    process.stop();
    let mut log = BufReader::new(process.child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("drains") {
        line.clear();
        assert!(log.read_line(&mut line).expect("text") > 0, "ended");
    }
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
    assert_eq!(process.child.wait().expect("ends").code(), Some(0));
}

#[test]
fn what_cannot_serve_says_why() {
    let mut process = Process::start(&["--listen", "0.0.0.0:0"]);
    assert_eq!(process.child.wait().expect("ends").code(), Some(1));
    let mut message = String::new();
    let stderr = process.child.stderr.as_mut().expect("piped");
    stderr.read_to_string(&mut message).expect("text");
    assert!(message.contains("--advertise"), "{message}");
}
