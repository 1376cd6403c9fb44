//! Every bad input is refused by name, before any work.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use xomni_tests::{
    coordinator::{Cluster, ROOMY, SOON},
    http::{Answer, Client},
};

use crate::images::{PATH, body};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

#[track_caller]
fn refused(answer: &Answer, status: u16, param: &Value, code: &str) {
    let error = &answer.json()["error"];
    assert_eq!(answer.status, status, "{error}");
    assert_eq!(
        (&error["param"], &error["code"]),
        (param, &json!(code)),
        "{error}"
    );
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    );
    assert_eq!(error["request_id"], answer.header("x-request-id"));
}

#[tokio::test]
async fn fields_are_named_with_limit_and_value() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    for (name, value, code) in [
        ("prompt", json!(""), "invalid_value"),
        ("prompt", json!("x".repeat(32_001)), "invalid_value"),
        ("prompt", json!(null), "invalid_type"),
        ("prompt", json!(["a"]), "invalid_type"),
        ("size", json!("60x64"), "invalid_value"),
        ("size", json!("0x64"), "invalid_value"),
        ("size", json!("4096x64"), "invalid_value"),
        ("size", json!("64"), "invalid_value"),
        ("size", json!(64), "invalid_type"),
        ("n", json!(0), "invalid_value"),
        ("n", json!(11), "invalid_value"),
        ("n", json!(-1), "invalid_type"),
        ("n", json!("2"), "invalid_type"),
        ("n", json!(1.5), "invalid_type"),
        ("seed", json!(-1), "invalid_type"),
        ("temperature", json!(-0.1), "invalid_value"),
        ("temperature", json!(1e300), "invalid_value"),
        ("temperature", json!("hot"), "invalid_type"),
        ("top_p", json!(0), "invalid_value"),
        ("top_p", json!(1.1), "invalid_value"),
        ("top_k", json!(-1), "invalid_type"),
        ("min_p", json!(1.1), "invalid_value"),
        ("guidance_scale", json!(-1), "invalid_value"),
        ("num_inference_steps", json!(0), "invalid_value"),
        ("num_inference_steps", json!(1001), "invalid_value"),
        ("response_format", json!("png"), "invalid_type"),
        ("output_format", json!("gif"), "invalid_type"),
        ("output_compression", json!(50), "invalid_value"),
        ("partial_images", json!(4), "invalid_value"),
        ("stream", json!("yes"), "invalid_type"),
        ("background", json!("transparent"), "invalid_value"),
        ("quality", json!("hd"), "invalid_value"),
        ("style", json!("vivid"), "invalid_value"),
    ] {
        let answer = client.post(PATH, &body(json!({name: value}))).await;
        refused(&answer, 400, &json!(name), code);
        let error = &answer.json()["error"];
        assert!(
            error["limit"].is_string() && error["value"].is_string(),
            "{error}"
        );
    }
    let answer = client.post(PATH, &body(json!({"model": "dall-e-3"}))).await;
    refused(&answer, 404, &json!("model"), "model_not_found");
    assert_eq!(cluster.jobs(), 0);
}

#[tokio::test]
async fn bodies_that_are_none_are_refused() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    for text in [
        "",
        "{",
        "nothing",
        r#"{"prompt": "a", "temperature": NaN}"#,
        r#"{"prompt": "a", "temperature": 1e999}"#,
        "\"\\ud800\"",
    ] {
        let answer = client.send("POST", PATH, &JSON, text.into()).await;
        refused(&answer, 400, &Value::Null, "invalid_json");
    }
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let answer = client.send("POST", PATH, &JSON, deep.into()).await;
    refused(&answer, 400, &Value::Null, "invalid_json");
    let answer = client.send("POST", PATH, &JSON, "[1]".into()).await;
    assert_eq!(answer.status, 400);
    let plain = [("content-type", "text/plain")];
    let answer = client
        .send("POST", PATH, &plain, body(json!({})).to_string().into())
        .await;
    refused(&answer, 415, &Value::Null, "unsupported_media_type");
    let huge = body(json!({"user": "x".repeat(2 << 20)}));
    refused(
        &client.post(PATH, &huge).await,
        413,
        &Value::Null,
        "request_too_large",
    );
    assert_eq!(cluster.jobs(), 0);
}

#[tokio::test]
async fn bodies_that_do_not_come_are_not_waited_for() {
    let slow = Cluster::start_with(1, |setup| {
        setup.http.read_timeout = Duration::from_millis(200);
    });
    let cluster = slow.await;
    let mut connection = TcpStream::connect(cluster.address).await.expect("connects");
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: 100\r\n\r\n{{\"prompt\""
    );
    connection.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = connection.read_to_string(&mut answer);
    tokio::time::timeout(SOON, read)
        .await
        .expect("in time")
        .expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("request_timeout"), "{answer}");
    assert_eq!(cluster.jobs(), 0);
}
