//! Chats over the pipeline: the original's answer, whatever fails on the way.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde::Deserialize;
use tokio::sync::mpsc;
use tonic::Code;
use xomni_coordinator::{
    metrics::Metrics,
    pipeline::{Pipeline, TextEvent},
    pool::{ATTEMPTS, BackbonePool, DecoderPool, Pool},
    request::{ChatJob, ChatMessage, ChatRequest, Content, TextJob},
    routing::Router,
};
use xomni_engine::{Result, schedule::FinishReason, text::Role};
use xomni_proto::chat::{
    self as wire, ChatRole, CompleteRequest, ContentPart, TextEnd, chat_client::ChatClient,
    chat_event::Event, content_part::Part,
};
use xomni_tests::{
    coordinator::{Cluster, ROOMY},
    golden::Fixture,
    tiny::{Tiny, record},
};
use xomni_worker::api::{Backbone, Decoder, Encoder};

use crate::model::{
    Failure::{self, EndsAfter, FailsAfter, IsFull, Refuses},
    Flaky,
};

/// What the original says about a picture.
#[derive(Deserialize)]
pub struct Golden {
    picture: String,
    question: String,
    input_ids: Vec<u32>,
    max_new_tokens: usize,
    generated_ids: Vec<u32>,
    generated_text: String,
}

impl Golden {
    fn open() -> Self {
        Fixture::open().json("04_understanding")
    }

    fn request(&self) -> ChatRequest {
        let picture = std::fs::read(Fixture::open().path(&self.picture)).expect("a picture");
        let content = vec![
            Content::Picture(picture.into()),
            Content::Text(self.question.clone()),
        ];
        ChatRequest {
            messages: vec![ChatMessage {
                role: Role::User,
                content,
            }],
            max_tokens: Some(self.max_new_tokens),
            ..ChatRequest::default()
        }
    }
}

fn job(model: &Tiny, request: ChatRequest) -> ChatJob {
    let job = model.chat().validate(request, &model.limits());
    job.expect("valid")
}

fn text_job(model: &Tiny, request: ChatRequest) -> TextJob {
    job(model, request).text.expect("text")
}

/// The events of a job over these services.
async fn answer<B: Backbone, D: Decoder + Encoder>(
    backbone: B,
    decoder: D,
    model: &Tiny,
    job: TextJob,
) -> Result<Vec<TextEvent>> {
    let (events, mut inbox) = mpsc::channel(1024);
    let pipeline = Pipeline::new(model.chat(), backbone, Arc::new(decoder));
    let collect = async {
        let mut all = vec![];
        while let Some(event) = inbox.recv().await {
            all.push(event);
        }
        all
    };
    let (answered, all) = tokio::join!(pipeline.answer(job, events), collect);
    answered.map(|()| all)
}

/// The text of an answer, its tokens and why it ended.
fn whole(events: &[TextEvent], index: usize) -> (String, usize, Option<FinishReason>) {
    let own: Vec<_> = events.iter().filter(|event| event.index == index).collect();
    let last = own.last().expect("an answer");
    assert!(last.finished.is_some() && own.iter().rev().skip(1).all(|e| e.finished.is_none()));
    let text = own.iter().map(|event| event.text.as_str()).collect();
    (text, last.tokens, last.finished)
}

async fn answered(model: &Tiny, request: ChatRequest) -> Vec<TextEvent> {
    let job = text_job(model, request);
    let events = answer(model.clone(), model.clone(), model, job).await;
    events.expect("answered")
}

#[tokio::test]
async fn the_answer_is_the_originals() {
    let (model, golden) = (Tiny::open(), Golden::open());
    let job = text_job(&model, golden.request());
    let code = |id: &u32| model.0.tokenizer.image_code(*id);
    let codes = golden.input_ids.iter().filter_map(code).collect();
    let generate = model.chat().generate_job(&job, &[codes]).expect("fits");
    assert_eq!(generate.prompt, golden.input_ids);
    let events = answer(model.clone(), model.clone(), &model, job).await;
    let expected = (
        golden.generated_text.clone(),
        golden.generated_ids.len(),
        Some(FinishReason::Length),
    );
    assert_eq!(whole(&events.expect("answered"), 0), expected);
}

#[tokio::test]
async fn answers_are_drawn_by_seed_and_index() {
    let (model, golden) = (Tiny::open(), Golden::open());
    let request = |n, seed| ChatRequest {
        n: Some(n),
        seed: Some(seed),
        temperature: Some(1.0),
        max_tokens: Some(24),
        ..golden.request()
    };
    let three = answered(&model, request(3, 7)).await;
    let texts: Vec<_> = (0..3).map(|index| whole(&three, index).0).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    assert_eq!(whole(&answered(&model, request(1, 7)).await, 0).0, texts[0]);
    assert_ne!(whole(&answered(&model, request(1, 8)).await, 0).0, texts[0]);
}

#[tokio::test]
async fn a_stop_string_ends_an_answer_before_it() {
    let (model, golden) = (Tiny::open(), Golden::open());
    // It begins in one token and ends in another.
    let stop = "light mod";
    let before = golden.generated_text.split(stop).next().expect("a text");
    let request = ChatRequest {
        stop: vec!["never".into(), stop.into()],
        ..golden.request()
    };
    let events = answered(&model, request).await;
    let (text, tokens, finished) = whole(&events, 0);
    assert_eq!(
        (text.as_str(), finished),
        (before, Some(FinishReason::Stop))
    );
    assert!(tokens < golden.generated_ids.len());
    let mut so_far = String::new();
    for event in events {
        so_far += &event.text;
        assert!(before.starts_with(&so_far), "{so_far:?}");
    }
}

fn asks(golden: &Golden, picture: Part) -> CompleteRequest {
    let part = |part| ContentPart { part: Some(part) };
    CompleteRequest {
        messages: vec![wire::ChatMessage {
            role: ChatRole::User.into(),
            content: vec![part(picture), part(Part::Text(golden.question.clone()))],
        }],
        max_tokens: Some(golden.max_new_tokens as u32),
        ..CompleteRequest::default()
    }
}

#[tokio::test]
async fn over_grpc_it_is_the_same() {
    let (cluster, golden) = (Cluster::start(1, ROOMY).await, Golden::open());
    let mut client = ChatClient::new(cluster.channel());
    let picture = std::fs::read(Fixture::open().path(&golden.picture)).expect("a picture");
    let request = asks(&golden, Part::Picture(picture.into()));
    let answer = client.complete(request).await.expect("accepted");
    let mut stream = answer.into_inner();
    let (mut text, mut end, mut read) = (String::new(), TextEnd::Unspecified, 0);
    while let Some(event) = stream.message().await.expect("answered") {
        match event.event.expect("an event") {
            Event::Accepted(accepted) => read = accepted.prompt_tokens as usize,
            Event::Text(delta) => {
                text += &delta.text;
                end = delta.finished();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        (text, end),
        (golden.generated_text.clone(), TextEnd::Length)
    );
    assert_eq!(read, golden.input_ids.len());
    let jobs = cluster.jobs();
    let unknown = Part::FileId("file-0".into());
    let refused = client
        .complete(asks(&golden, unknown))
        .await
        .expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("file_id: "), "{refused}");
    assert_eq!(cluster.jobs(), jobs);
    cluster.idle().await;
}

fn pool(flaky: &Flaky, router: &Router) -> Pool<Flaky> {
    Pool {
        model: "tiny".into(),
        router: router.clone(),
        connect: flaky.clone(),
        attempts: ATTEMPTS,
        metrics: Metrics::default(),
    }
}

#[tokio::test]
async fn the_answer_is_the_same_whatever_fails_when() {
    let (model, golden) = (Tiny::open(), Golden::open());
    let sampled = ChatRequest {
        n: Some(2),
        seed: Some(3),
        temperature: Some(1.0),
        max_tokens: Some(40),
        ..golden.request()
    };
    let expected = answered(&model, sampled.clone()).await;
    let scripts: [(Vec<Failure>, Vec<Failure>); 4] = [
        (vec![FailsAfter(1)], vec![Refuses]),
        (
            vec![Refuses, FailsAfter(0), EndsAfter(2)],
            vec![IsFull, Refuses],
        ),
        (vec![FailsAfter(3), FailsAfter(2), FailsAfter(1)], vec![]),
        (vec![EndsAfter(5), IsFull], vec![Refuses, Refuses, Refuses]),
    ];
    for (backbones, decoders) in scripts {
        let router = Router::new(Duration::from_millis(1));
        let workers = [("a", Some(1)), ("b", Some(1)), ("c", None), ("d", None)];
        router.update(&workers.map(|(id, epoch)| record(id, "", epoch)));
        let reads = decoders.len() + 1;
        let backbone = Flaky::new(&model, backbones);
        let decoder = Flaky::new(&model, decoders);
        let events = answer(
            BackbonePool::new(pool(&backbone, &router)),
            DecoderPool::new(pool(&decoder, &router), 3),
            &model,
            text_job(&model, sampled.clone()),
        );
        let events = events.await.expect("answered");
        for index in 0..2 {
            assert_eq!(whole(&events, index), whole(&expected, index));
        }
        assert_eq!(decoder.jobs.load(Ordering::Relaxed), reads);
    }
}
