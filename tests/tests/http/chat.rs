//! `POST /v1/chat/completions` as a client sees it.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use xomni_tests::{
    coordinator::{Cluster, ROOMY},
    golden::Fixture,
    http::{Answer, Client},
};

const PATH: &str = "/v1/chat/completions";

/// What the original says about a picture.
#[derive(Deserialize)]
struct Golden {
    picture: String,
    question: String,
    input_ids: Vec<u32>,
    max_new_tokens: usize,
    generated_ids: Vec<u32>,
    generated_text: String,
}

fn golden() -> Golden {
    Fixture::open().json("04_understanding")
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Fixture::open().path(name)).expect("a picture")
}

fn data_url(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", BASE64_STANDARD.encode(bytes))
}

/// The golden question with this picture.
fn about(picture: Value) -> Value {
    let golden = golden();
    json!({
        "model": "tiny",
        "messages": [{
            "role": "user",
            "content": [picture, {"type": "text", "text": golden.question}],
        }],
        "max_tokens": golden.max_new_tokens,
    })
}

fn by_url() -> Value {
    let url = data_url("image/png", &file(&golden().picture));
    json!({"type": "image_url", "image_url": {"url": url, "detail": "auto"}})
}

fn hello() -> Value {
    json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8})
}

/// `body` with these fields.
fn with(mut body: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else {
        panic!("no fields: {fields}")
    };
    body.as_object_mut().expect("an object").extend(fields);
    body
}

fn text(answer: &Answer) -> String {
    let answer = answer.json();
    let content = &answer["choices"][0]["message"]["content"];
    content
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

#[tokio::test]
async fn a_picture_by_data_url_is_understood_as_by_the_original() {
    let cluster = Cluster::start(1, ROOMY).await;
    let answer = Client::new(cluster.address)
        .post(PATH, &about(by_url()))
        .await;
    let golden = golden();
    assert_eq!(text(&answer), golden.generated_text);
    let answer = answer.json();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "tiny");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    let (read, written) = (golden.input_ids.len(), golden.generated_ids.len());
    let usage = json!({
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    });
    assert_eq!(answer["usage"], usage);
    cluster.idle().await;
}

#[tokio::test]
async fn a_stream_is_the_whole_answer_in_whole_characters() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let mut stream = client.stream(PATH, &with(about(by_url()), options)).await;
    assert_eq!(stream.status, 200);
    let mut text = String::new();
    let mut finish = vec![];
    let mut usage = Value::Null;
    let mut roles = 0;
    while let Some(event) = stream.event().await {
        let chunk = event.data;
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(usage, Value::Null, "the usage comes last");
        match chunk["choices"].as_array().expect("choices").as_slice() {
            [] => usage = chunk["usage"].clone(),
            [choice] => {
                assert_eq!(chunk["usage"], Value::Null);
                roles += usize::from(choice["delta"]["role"] == "assistant");
                text += choice["delta"]["content"].as_str().unwrap_or_default();
                finish.extend(choice["finish_reason"].as_str().map(str::to_owned));
            }
            _ => panic!("{chunk}"),
        }
    }
    assert_eq!(text, golden().generated_text);
    assert_eq!((roles, finish), (1, vec!["length".to_owned()]));
    assert_eq!(usage["completion_tokens"], golden().generated_ids.len());
}

#[tokio::test]
async fn an_uploaded_picture_is_shown_by_its_id_until_it_is_deleted() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let picture = file(&golden().picture);
    let uploaded = upload(&client, "vision", "fox.png", &picture).await;
    assert_eq!(uploaded.status, 200, "{:?}", uploaded.json());
    let described = uploaded.json();
    let id = described["id"].as_str().expect("an id");
    assert_eq!(described["bytes"], picture.len());
    assert_eq!(described["filename"], "fox.png");
    let one = format!("/v1/files/{id}");
    assert_eq!(client.get(&one).await.json(), described);
    let listed = client.get("/v1/files").await.json();
    assert_eq!(listed["data"], json!([described]));
    assert_eq!(client.get(&format!("{one}/content")).await.body, picture);

    let shown = json!({"type": "file", "file": {"file_id": id}});
    let answer = client.post(PATH, &about(shown.clone())).await;
    assert_eq!(text(&answer), golden().generated_text);

    let deleted = client.send("DELETE", &one, &[], vec![]).await;
    assert_eq!(deleted.json()["deleted"], true);
    assert_eq!(client.get(&one).await.status, 404);
    let gone = client.post(PATH, &about(shown)).await;
    assert_eq!(gone.status, 400);
    assert_eq!(gone.json()["error"]["param"], "file_id");
}

async fn upload(client: &Client, purpose: &str, name: &str, bytes: &[u8]) -> Answer {
    let mut body = Vec::new();
    body.extend_from_slice(b"--xx\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\n");
    body.extend_from_slice(purpose.as_bytes());
    let head = format!(
        "\r\n--xx\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         content-type: application/octet-stream\r\n\r\n"
    );
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(bytes);
    body.extend_from_slice(b"\r\n--xx--\r\n");
    let kind = [("content-type", "multipart/form-data; boundary=xx")];
    client.send("POST", "/v1/files", &kind, body).await
}

#[tokio::test]
async fn uploads_that_no_chat_could_show_are_refused() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let picture = file("images/picture_2.png");
    let large = vec![0; (20 << 20) + 1];
    for (purpose, bytes, status, part) in [
        (
            "batch",
            &picture,
            400,
            "purpose: must be vision or user_data",
        ),
        (
            "vision",
            &b"GIF89a".to_vec(),
            400,
            "must be a readable PNG or JPEG",
        ),
        ("vision", &bomb(), 400, "at most 50000000 pixels"),
        (
            "vision",
            &file("images/rejected_small.png"),
            400,
            "short side at least 40",
        ),
        ("vision", &large, 413, "at most 20971520 bytes"),
    ] {
        let refused = upload(&client, purpose, "a", bytes).await;
        assert_eq!(refused.status, status, "{part}");
        let message = refused.json()["error"]["message"].to_string();
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(client.get("/v1/files").await.json()["data"], json!([]));
}

/// A small file that says it is a large picture.
fn bomb() -> Vec<u8> {
    let mut png = file("images/picture_2.png");
    png[16..20].copy_from_slice(&100_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&100_000u32.to_be_bytes());
    let crc = !png[12..29].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 * (crc & 1))
        })
    });
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    png
}

#[tokio::test]
async fn bad_chats_are_refused_by_field_limit_and_value_before_any_work() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let shows = |url: &str| {
        json!({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}},
        ]}]})
    };
    let said = |message: Value| json!({"messages": [message]});
    let hello = |fields: Value| with(hello(), fields);
    let long = "word ".repeat(20_000);
    let large = data_url("image/png", &vec![0; (20 << 20) + 3]);
    let cases = [
        (json!({}), "messages", "must be given"),
        (json!({"messages": []}), "messages", "1 to 4096"),
        (
            said(json!({"role": "user", "content": ""})),
            "messages",
            "must have content",
        ),
        (
            said(json!({"role": "user", "content": []})),
            "messages",
            "must have content",
        ),
        (
            said(json!({"role": "user"})),
            "messages",
            "must have content",
        ),
        (
            said(json!({"role": "robot", "content": "x"})),
            "messages[0].role",
            "`user`",
        ),
        (
            said(json!({"role": "tool", "content": "x"})),
            "messages[0].role",
            "`user`",
        ),
        (
            said(json!({"role": "user", "content": 7})),
            "messages[0].content",
            "array of parts",
        ),
        (
            said(json!({"role": "user", "content": [{"type": "input_audio"}]})),
            "messages[0].content",
            "`image_url`",
        ),
        (
            said(json!({"role": "user", "content": long})),
            "messages",
            "fewer than 8192 tokens",
        ),
        (
            shows("https://example.com/a.png"),
            "messages[0].content",
            "https URLs are not fetched",
        ),
        (
            shows("http://127.0.0.1/a.png"),
            "messages[0].content",
            "http URLs are not fetched",
        ),
        (
            shows("data:image/gif;base64,R0lG"),
            "messages[0].content",
            "image/png or image/jpeg",
        ),
        (
            shows("data:image/png;base64,R0lG"),
            "image",
            "readable PNG or JPEG",
        ),
        (
            shows(&data_url("image/png", &bomb())),
            "image",
            "at most 50000000 pixels",
        ),
        (
            shows(&large),
            "messages[0].content",
            "at most 20971520 bytes",
        ),
        (
            shows(&data_url("image/png", &file("images/rejected_aspect.png"))),
            "image",
            "ratio of the sides at most 3",
        ),
        (hello(json!({"model": "gpt-5"})), "model", "must be tiny"),
        (hello(json!({"n": 0})), "n", "1 to 10"),
        (hello(json!({"n": "two"})), "n", "expected usize"),
        (
            hello(json!({"max_tokens": 0})),
            "max_tokens",
            "must be 1 to",
        ),
        (hello(json!({"max_tokens": 100_000})), "max_tokens", "8192"),
        (
            hello(json!({"max_completion_tokens": 9})),
            "max_tokens",
            "max_completion_tokens, 9",
        ),
        (hello(json!({"temperature": -1})), "temperature", "0 to"),
        (hello(json!({"top_p": 0})), "top_p", "above 0"),
        (hello(json!({"stop": [""]})), "stop", "1 to 256"),
        (hello(json!({"stop": 3})), "stop", "array of strings"),
        (
            hello(json!({"logprobs": true})),
            "logprobs",
            "not implemented",
        ),
        (
            hello(json!({"tools": [{"type": "function"}]})),
            "tools",
            "not implemented",
        ),
        (
            hello(json!({"frequency_penalty": 0.5})),
            "frequency_penalty",
            "not implemented",
        ),
        (
            hello(json!({"modalities": []})),
            "modalities",
            "text, image or both",
        ),
        (
            hello(json!({"modalities": ["audio"]})),
            "modalities[0]",
            "`image`",
        ),
        (
            hello(json!({"image": {"size": "64x64"}})),
            "image",
            "modalities include image",
        ),
        (
            hello(json!({"modalities": ["image"], "image": {"size": "60x64"}})),
            "image.size",
            "multiples of 16",
        ),
        (
            hello(json!({"stream_options": {}})),
            "stream_options",
            "stream: true",
        ),
    ];
    for (body, field, part) in cases {
        let answer = client.post(PATH, &body).await;
        let error = &answer.json()["error"];
        assert!((400..=404).contains(&answer.status), "{part}: {error}");
        assert_eq!(error["type"], "invalid_request_error", "{error}");
        let param = error["param"].as_str().unwrap_or_default();
        assert!(param.starts_with(field), "{field}: {error}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(part), "{part}: {error}");
    }
    assert_eq!(cluster.jobs(), 0);
    let neutral = json!({
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": null, "user": "me",
        "response_format": {"type": "text"}, "tools": [], "logprobs": false, "unheard_of": 1,
    });
    assert_eq!(client.post(PATH, &hello(neutral)).await.status, 200);
}

#[tokio::test]
async fn stop_strings_end_an_answer_before_they_are_seen() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    // It begins in one token and ends in another.
    let stop = json!({"stop": "light mod", "stream": true});
    let mut stream = client.stream(PATH, &with(about(by_url()), stop)).await;
    let (mut text, mut finish) = (String::new(), None);
    while let Some(event) = stream.event().await {
        let choice = &event.data["choices"][0];
        text += choice["delta"]["content"].as_str().unwrap_or_default();
        finish = choice["finish_reason"]
            .as_str()
            .map(str::to_owned)
            .or(finish);
    }
    let golden = golden().generated_text;
    assert_eq!(Some(text.as_str()), golden.split("light mod").next());
    assert_eq!(finish.as_deref(), Some("stop"));
    cluster.idle().await;
}

#[tokio::test]
async fn several_answers_are_those_of_their_seed() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let sampled = json!({"n": 3, "seed": 7, "temperature": 1, "max_tokens": 24});
    let request = with(hello(), sampled);
    let answer = client.post(PATH, &request).await.json();
    let choices = answer["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 3);
    assert_ne!(choices[0]["message"], choices[1]["message"]);
    let again = client.post(PATH, &request).await.json();
    assert_eq!(again["choices"], answer["choices"]);

    let mut stream = client
        .stream(PATH, &with(request, json!({"stream": true})))
        .await;
    let mut texts = vec![String::new(); 3];
    while let Some(event) = stream.event().await {
        let choice = &event.data["choices"][0];
        let index = choice["index"].as_u64().expect("an index") as usize;
        texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
    }
    for (choice, text) in choices.iter().zip(texts) {
        assert_eq!(choice["message"]["content"], text);
    }
}

#[tokio::test]
async fn a_picture_is_drawn_where_the_chat_asks_for_one() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let body = |fields: Value| {
        let chat = json!({
            "messages": [{"role": "user", "content": "a red fox"}],
            "seed": 7,
            "max_tokens": 8,
            "image": {"size": "64x64", "num_inference_steps": 3},
        });
        with(chat, fields)
    };
    let drawn = cluster
        .model
        .draw(cluster.model.job("a red fox", "64x64", 1))
        .await;
    let url = data_url("image/png", &drawn[0].png);
    let images = json!([{"type": "image_url", "image_url": {"url": url}}]);

    let alone = client
        .post(PATH, &body(json!({"modalities": ["image"]})))
        .await
        .json();
    let message = &alone["choices"][0]["message"];
    assert_eq!(message["images"], images);
    assert_eq!(message["content"], Value::Null);
    assert_eq!(alone["choices"][0]["finish_reason"], "stop");
    assert_eq!(alone["usage"]["completion_tokens"], 16);

    let both = json!({"modalities": ["text", "image"], "stream": true});
    let mut stream = client.stream(PATH, &body(both)).await;
    let (mut text, mut seen, mut ends) = (String::new(), vec![], 0);
    while let Some(event) = stream.event().await {
        let choice = &event.data["choices"][0];
        text += choice["delta"]["content"].as_str().unwrap_or_default();
        seen.extend(choice["delta"].get("images").cloned());
        ends += usize::from(choice["finish_reason"].is_string());
    }
    assert_eq!((seen, ends), (vec![images], 1));
    let plain = json!({"messages": [{"role": "user", "content": "a red fox"}], "max_tokens": 8});
    assert_eq!(self::text(&client.post(PATH, &plain).await), text);
}

#[tokio::test]
async fn a_client_that_leaves_frees_everything() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let long = json!({"max_tokens": 8000, "temperature": 1, "n": 4, "stream": true});
    let mut stream = client.stream(PATH, &with(hello(), long)).await;
    stream.event().await.expect("it begins");
    drop((stream, client));
    cluster.idle().await;
}
