//! Pictures over HTTP: the same bytes as over gRPC, in every form of delivery.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tonic::Code;
use xomni_proto::images::{GenerateImagesRequest, image_event::Event, images_client::ImagesClient};
use xomni_tests::{
    coordinator::{Cluster, ROOMY},
    http::Client,
};

pub const PATH: &str = "/v1/images/generations";

/// A request for pictures of 64 x 96 pixels, with other fields as given.
pub fn body(more: Value) -> Value {
    let mut body = json!({
        "prompt": "a red fox", "size": "64x96", "seed": 7, "num_inference_steps": 3,
    });
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    body
}

pub fn decoded(picture: &Value) -> Vec<u8> {
    let text = picture["b64_json"].as_str().expect("a picture");
    BASE64_STANDARD.decode(text).expect("base64")
}

/// The same two pictures over gRPC.
async fn over_grpc(cluster: &Cluster) -> Vec<Vec<u8>> {
    let request = GenerateImagesRequest {
        prompt: "a red fox".into(),
        size: Some("64x96".into()),
        seed: Some(7),
        num_inference_steps: Some(3),
        n: Some(2),
        ..Default::default()
    };
    let answer = ImagesClient::new(cluster.channel()).generate(request).await;
    let mut stream = answer.expect("accepted").into_inner();
    let mut pictures = vec![vec![]; 2];
    while let Some(event) = stream.message().await.expect("drawn") {
        if let Some(Event::Picture(chunk)) = event.event {
            pictures[chunk.index as usize].extend_from_slice(&chunk.data);
        }
    }
    pictures
}

#[tokio::test]
async fn pictures_are_those_of_grpc() {
    let cluster = Cluster::start(1, ROOMY).await;
    let expected = over_grpc(&cluster).await;
    let client = Client::new(cluster.address);
    let answer = client
        .post(PATH, &body(json!({"n": 2, "model": "tiny"})))
        .await;
    assert_eq!(
        answer.status,
        200,
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
    let answer = answer.json();
    let data = answer["data"].as_array().expect("pictures");
    let drawn: Vec<_> = data.iter().map(decoded).collect();
    assert!(drawn == expected);
    assert_eq!(answer["size"], "64x96");
    assert_eq!(answer["seed"], 7);
    assert_eq!(answer["output_format"], "png");
    let usage = &answer["usage"];
    assert_eq!(usage["output_tokens"], 2 * 4 * 6);
    let (input, total) = (
        usage["input_tokens"].as_u64(),
        usage["total_tokens"].as_u64(),
    );
    assert_eq!(total.expect("a number"), input.expect("a number") + 48);
    assert!(answer["created"].as_u64().expect("a time") > 1_700_000_000);
    cluster.idle().await;
}

#[tokio::test]
async fn a_seed_that_was_chosen_draws_the_same_again() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let request = body(json!({"seed": null, "size": "32x32"}));
    let first = client.post(PATH, &request).await.json();
    let request = body(json!({"seed": first["seed"], "size": "32x32"}));
    let again = client.post(PATH, &request).await.json();
    assert_eq!(first["data"], again["data"]);
}

#[tokio::test]
async fn other_formats_show_the_same_picture() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let draw = async |more: Value| {
        let answer = client.post(PATH, &body(more)).await;
        assert_eq!(
            answer.status,
            200,
            "{}",
            String::from_utf8_lossy(&answer.body)
        );
        image::load_from_memory(&decoded(&answer.json()["data"][0])).expect("readable")
    };
    let png = draw(json!({})).await;
    let webp = draw(json!({"output_format": "webp"})).await;
    assert!(webp.to_rgb8() == png.to_rgb8());
    let jpeg = draw(json!({"output_format": "jpeg", "output_compression": 90})).await;
    assert_eq!((jpeg.width(), jpeg.height()), (64, 96));
}

#[tokio::test]
async fn addresses_lead_to_pictures_until_they_expire() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let request = body(json!({"response_format": "url", "n": 2}));
    let answer = client.post(PATH, &request).await.json();
    let expected = over_grpc(&cluster).await;
    for (picture, expected) in answer["data"]
        .as_array()
        .expect("two")
        .iter()
        .zip(&expected)
    {
        let address = picture["url"].as_str().expect("an address");
        let base = format!("http://{}", cluster.address);
        let path = address.strip_prefix(&base).expect("this coordinator's");
        let file = client.get(path).await;
        assert_eq!(
            (file.status, file.header("content-type")),
            (200, "image/png")
        );
        assert!(&file.body == expected);
    }
    let short = Cluster::start_with(1, |setup| setup.http.url_expiry = std::time::Duration::ZERO);
    let cluster = short.await;
    let client = Client::new(cluster.address);
    let answer = client.post(PATH, &request).await.json();
    let address = answer["data"][0]["url"].as_str().expect("an address");
    let path = address.find("/v1").map(|at| &address[at..]);
    let gone = client.get(path.expect("a path")).await;
    assert_eq!(gone.status, 404);
    assert_eq!(gone.json()["error"]["code"], "expired_url");
}

#[tokio::test]
async fn a_client_that_leaves_frees_everything() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let long = body(json!({"size": "256x256", "stream": true, "progress": true}));
    let mut streamed = client.stream(PATH, &long).await;
    while streamed.event().await.expect("an event").data["stage"] != "drawing" {}
    drop(streamed);
    cluster.idle().await;
    let long = body(json!({"size": "256x256"}));
    {
        let waiting = client.post(PATH, &long);
        let drawing = async {
            while cluster.jobs() < 2 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            answer = waiting => panic!("{}", answer.status),
            () = drawing => {}
        }
    }
    cluster.idle().await;
    assert_eq!(cluster.metrics.requests(Code::Cancelled).get(), 2);
}

#[tokio::test]
async fn edits_and_variations_are_refused_clearly() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let form = [("content-type", "multipart/form-data; boundary=x")];
    let part = "--x\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\n";
    let upload = [part.as_bytes(), &[7; 1 << 20], b"\r\n--x--\r\n"].concat();
    for path in ["/v1/images/edits", "/v1/images/variations"] {
        let answer = client.send("POST", path, &form, upload.clone()).await;
        assert_eq!(answer.status, 400);
        let error = &answer.json()["error"];
        assert_eq!(error["code"], "unsupported");
        assert!(
            error["message"]
                .as_str()
                .expect("text")
                .contains("cannot edit")
        );
    }
}
