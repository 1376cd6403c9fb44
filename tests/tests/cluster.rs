//! A cluster of real processes draws what one process draws, whatever is killed meanwhile.

use std::{fs, path::Path, process::Command, time::Duration};

use serde::Deserialize;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use xomni_proto::{
    chat::{
        ChatMessage, ChatRole, CompleteRequest, ContentPart, chat_client::ChatClient, chat_event,
        content_part::Part,
    },
    images::{GenerateImagesRequest, image_event::Event, images_client::ImagesClient},
};
use xomni_tests::{
    etcd::Etcd,
    golden::Fixture,
    process::{Process, binary, wait_for},
};

const SEED: u64 = 3;
const SIZE: &str = "64x64";

#[derive(Deserialize)]
struct Line {
    prompt: String,
}

/// Ten prompts, five English and five Chinese; `XOMNI_PROMPTS` names another file.
fn prompts() -> Vec<String> {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/data/prompts.jsonl");
    let file = std::env::var("XOMNI_PROMPTS").unwrap_or_else(|_| committed.to_owned());
    let text = fs::read_to_string(file).expect("prompts");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a prompt"));
    let all: Vec<String> = lines.map(|Line { prompt }| prompt).collect();
    let half = all.len() / 2;
    all[..5]
        .iter()
        .chain(&all[half..half + 5])
        .cloned()
        .collect()
}

/// The pictures of `prompts`, drawn by one process.
fn one_process(prompts: &[String]) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("folder");
    let lines = prompts
        .iter()
        .map(|prompt| serde_json::json!({ "prompt": prompt }).to_string());
    let file = folder.path().join("prompts.jsonl");
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).expect("written");
    let output = Command::new(binary("xomni"))
        .args([
            "generate",
            "--seed",
            &SEED.to_string(),
            "--size",
            SIZE,
            "--prompts",
        ])
        .arg(&file)
        .args(["-o", "p.png"])
        .current_dir(folder.path())
        .output()
        .expect("xomni runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let name = |index| folder.path().join(format!("p-{index}.png"));
    (0..prompts.len())
        .map(|index| fs::read(name(index)).expect("picture"))
        .collect()
}

/// etcd, a coordinator, the two ranks of one group, and two decoders.
struct Cluster {
    etcd: Etcd,
    folder: TempDir,
    ranks: Vec<Process>,
    decoders: Vec<Process>,
    _coordinator: Process,
    channel: Channel,
}

impl Cluster {
    async fn start() -> Self {
        let etcd = Etcd::new();
        let folder = tempfile::tempdir().expect("folder for logs");
        let ranks = (0..2)
            .map(|rank| start_rank(&etcd, folder.path(), rank))
            .collect();
        let decoders = (0..2)
            .map(|number| start_decoder(&etcd, folder.path(), number))
            .collect();
        let fixture = Fixture::open();
        let model = fixture.x_omni().display().to_string();
        let arguments = ["--model", &model, "--etcd", &etcd.endpoints()[0]];
        let mut coordinator = Process::start(
            "coordinator",
            "xomni-coordinator",
            &arguments,
            &[],
            folder.path(),
        );
        let address = coordinator.wait_for_line("coordinator ready at ");
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("address");
        let cluster = Self {
            etcd,
            folder,
            ranks,
            decoders,
            _coordinator: coordinator,
            channel: endpoint.connect_lazy(),
        };
        cluster.wait_until_it_draws().await;
        cluster
    }

    /// Waits until a smallest picture can be drawn.
    async fn wait_until_it_draws(&self) {
        let deadline = tokio::time::Instant::now() + xomni_tests::process::PATIENCE;
        while let Err(status) = draw(self.channel.clone(), "warm", "16x16", || ()).await {
            assert!(tokio::time::Instant::now() < deadline, "{status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn start_rank(etcd: &Etcd, folder: &Path, rank: u32) -> Process {
    let model = Fixture::open().x_omni().display().to_string();
    let (rank, endpoint) = (rank.to_string(), &etcd.endpoints()[0]);
    let arguments = [
        "backbone",
        "--model",
        &model,
        "--etcd",
        endpoint,
        "--tp",
        "2",
        "--ranks",
        "1",
        "--first-rank",
        &rank,
        "--kv-memory",
        "256",
    ];
    Process::start(
        &format!("rank {rank}"),
        "xomni-worker",
        &arguments,
        &[],
        folder,
    )
}

fn start_decoder(etcd: &Etcd, folder: &Path, number: u32) -> Process {
    let fixture = Fixture::open();
    let model = fixture.x_omni().display().to_string();
    let flux = fixture.flux().display().to_string();
    let endpoint = &etcd.endpoints()[0];
    let arguments = [
        "decoder", "--model", &model, "--flux", &flux, "--etcd", endpoint,
    ];
    Process::start(
        &format!("decoder {number}"),
        "xomni-worker",
        &arguments,
        &[],
        folder,
    )
}

/// Draws one picture; `drawing` is called whenever tokens arrive.
async fn draw(
    channel: Channel,
    prompt: &str,
    size: &str,
    drawing: impl Fn(),
) -> Result<Vec<u8>, tonic::Status> {
    let request = GenerateImagesRequest {
        prompt: prompt.into(),
        size: Some(size.into()),
        seed: Some(SEED),
        ..GenerateImagesRequest::default()
    };
    let mut stream = ImagesClient::new(channel)
        .generate(request)
        .await?
        .into_inner();
    let mut png = vec![];
    while let Some(event) = stream.message().await? {
        match event.event {
            Some(Event::Drawing(_)) => drawing(),
            Some(Event::Picture(chunk)) => png.extend_from_slice(&chunk.data),
            _ => {}
        }
    }
    Ok(png)
}

#[tokio::test(flavor = "multi_thread")]
async fn six_processes_draw_what_one_process_draws() {
    draw_through(|_| ()).await;
}

/// Runs `loss` as soon as the first tokens of ten requests are there; no picture may change.
async fn draw_through(loss: impl FnOnce(&mut Cluster)) {
    let prompts = prompts();
    let expected = one_process(&prompts);
    let mut cluster = Cluster::start().await;
    let (begun, mut beginning) = tokio::sync::watch::channel(false);
    let drawn = {
        let (channel, prompts) = (cluster.channel.clone(), prompts.clone());
        let mut requests = tokio::task::JoinSet::new();
        for (index, prompt) in prompts.into_iter().enumerate() {
            let (channel, begun) = (channel.clone(), begun.clone());
            requests.spawn(async move {
                let tell = || {
                    begun.send_replace(true);
                };
                (index, draw(channel, &prompt, SIZE, tell).await)
            });
        }
        requests
    };
    beginning
        .wait_for(|begun| *begun)
        .await
        .expect("requests run");
    loss(&mut cluster);
    let mut pictures = drawn.join_all().await;
    pictures.sort_by_key(|(index, _)| *index);
    for ((index, picture), expected) in pictures.into_iter().zip(&expected) {
        assert!(&picture.expect("a picture") == expected, "picture {index}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_rank_that_returns_changes_no_picture() {
    draw_through(|cluster| {
        cluster.ranks[1].kill();
        cluster.ranks[1] = start_rank(&cluster.etcd, cluster.folder.path(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_that_returns_changes_no_picture() {
    draw_through(|cluster| {
        cluster.ranks[0].kill();
        cluster.ranks[0] = start_rank(&cluster.etcd, cluster.folder.path(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_decoder_changes_no_picture() {
    draw_through(|cluster| cluster.decoders[0].kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drawing_goes_on_without_etcd() {
    draw_through(|cluster| cluster.etcd.stop()).await;
}

/// What a user asks about a picture.
const QUESTION: &str = "What is in this picture?";
/// Tokens of an answer: enough that it is still being written when a rank is gone.
const ANSWER: u32 = 1500;

fn picture() -> std::path::PathBuf {
    Fixture::open().path("images/picture_2.png")
}

/// The answer of one process, and what it says on the way.
fn one_process_answers() -> String {
    let output = Command::new(binary("xomni"))
        .args(["chat", QUESTION, "--max-tokens", &ANSWER.to_string()])
        .arg("--image")
        .arg(picture())
        .output()
        .expect("xomni runs");
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said.strip_suffix('\n').expect("a line's end").to_owned()
}

/// Asks about a picture; `begun` is called with the first of the answer.
async fn ask(channel: Channel, begun: impl FnOnce()) -> Result<(String, u32), tonic::Status> {
    let part = |part| ContentPart { part: Some(part) };
    let picture = fs::read(picture()).expect("a picture");
    let content = [Part::Picture(picture.into()), Part::Text(QUESTION.into())];
    let message = ChatMessage {
        role: ChatRole::User.into(),
        content: content.map(part).to_vec(),
    };
    let request = CompleteRequest {
        messages: vec![message],
        max_tokens: Some(ANSWER),
        ..CompleteRequest::default()
    };
    let answer = ChatClient::new(channel).complete(request).await?;
    let (mut stream, mut begun) = (answer.into_inner(), Some(begun));
    let (mut text, mut tokens) = (String::new(), 0);
    while let Some(event) = stream.message().await? {
        if let Some(chat_event::Event::Text(delta)) = event.event {
            text += &delta.text;
            tokens = delta.tokens;
            if let Some(begun) = begun.take() {
                begun();
            }
        }
    }
    Ok((text, tokens))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_killed_while_it_answers_changes_no_word() {
    let expected = one_process_answers();
    let mut cluster = Cluster::start().await;
    let (begun, beginning) = tokio::sync::oneshot::channel();
    let answer = tokio::spawn(ask(cluster.channel.clone(), || {
        let _ = begun.send(());
    }));
    beginning.await.expect("the answer begins");
    cluster.ranks[1].kill();
    assert!(!answer.is_finished(), "killed too late");
    cluster.ranks[1] = start_rank(&cluster.etcd, cluster.folder.path(), 1);
    let (text, tokens) = answer.await.expect("no panic").expect("an answer");
    assert_eq!((text, tokens), (expected, ANSWER));
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_end_at_sigterm() {
    let mut cluster = Cluster::start().await;
    for process in cluster.ranks.iter_mut().chain(&mut cluster.decoders) {
        process.signal("TERM");
        assert!(process.wait().success());
    }
    let gone = || cluster.decoders[0].output();
    wait_for("a line about the signal", || {
        gone().contains("drains").then_some(())
    });
}
