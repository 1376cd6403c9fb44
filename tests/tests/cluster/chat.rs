//! An answer about a picture while a rank is killed.

use std::{fs, path::PathBuf, process::Command};

use tokio::sync::oneshot;
use tonic::{Status, transport::Channel};
use xomni_proto::chat::{
    ChatMessage, ChatRole, CompleteRequest, ContentPart, chat_client::ChatClient, chat_event,
    content_part::Part,
};
use xomni_tests::{
    cluster::{Cluster, Shape, in_time},
    golden::Fixture,
    process::binary,
};

/// What a user asks about a picture.
const QUESTION: &str = "What is in this picture?";
/// Most tokens of the answer, which ends by itself.
const ANSWER: u32 = 1500;
/// Tokens that it has at least: it is still being written when a rank is gone.
const LEAST: u32 = 200;

fn picture() -> PathBuf {
    Fixture::open().path("images/picture_2.png")
}

/// The answer of one process.
fn one_process_answers() -> String {
    let fixture = Fixture::open();
    let output = Command::new(binary("xomni"))
        .args(["chat", QUESTION, "--max-tokens", &ANSWER.to_string()])
        .arg("--image")
        .arg(picture())
        .arg("--model")
        .arg(fixture.x_omni())
        .arg("--flux")
        .arg(fixture.flux())
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

/// Asks about a picture; `begun` is told of the first of the answer.
async fn ask(channel: Channel, begun: oneshot::Sender<()>) -> Result<(String, u32), Status> {
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
                begun.send(()).expect("someone waits");
            }
        }
    }
    Ok((text, tokens))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_killed_while_it_answers_changes_no_word() {
    let expected = one_process_answers();
    let mut cluster = Cluster::start(Shape {
        // Its answers are long.
        fixture: Fixture::open,
        ..Shape::new(1, 2, 2)
    })
    .await;
    let (begun, beginning) = oneshot::channel();
    let answer = tokio::spawn(ask(cluster.channel.clone(), begun));
    in_time("the first words", beginning).await.expect("words");
    cluster.groups[0][1].process.kill();
    assert!(!answer.is_finished(), "killed too late");
    cluster.restart_rank(0, 1);
    let answer = in_time("the answer", answer).await.expect("no panic");
    let (text, tokens) = answer.expect("an answer");
    assert_eq!(text, expected);
    assert!(tokens > LEAST, "{tokens} tokens are soon written");
}
