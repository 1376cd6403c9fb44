//! One request: sent, followed to its pictures, and checked.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use http_body_util::BodyExt;
use image::ImageFormat;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tonic::{
    body::Body,
    client::GrpcService,
    codegen::http::{Request, Response, StatusCode, header},
    transport::Channel,
};

use super::sse::Events;

/// Where pictures are asked for.
const PATH: &str = "/v1/images/generations";
/// Longest error that is read, in bytes.
const MAX_ERROR: usize = 64 << 10;

/// What all requests ask for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// `WIDTHxHEIGHT`; the server's choice if `None`.
    pub size: Option<String>,
    /// Pictures.
    pub n: usize,
    /// Denoising steps; the server's choice if `None`.
    pub steps: Option<u32>,
    /// Previews of each picture.
    pub partial_images: u32,
    /// Shown to the server.
    pub api_key: Option<String>,
    /// Longest that a request may take.
    pub timeout: Duration,
}

/// What a request has seen, in seconds from when it was sent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// When it began to run.
    pub started: Option<f64>,
    /// When its first token was there.
    pub first_token: Option<f64>,
    /// When its first preview was there.
    pub first_partial: Option<f64>,
    /// When each of its pictures was there.
    pub pictures: Vec<f64>,
    /// Tokens drawn.
    pub tokens: usize,
}

/// What became of a request: what was seen, and the kind of error that ended it if one did.
#[derive(Debug)]
pub struct Outcome {
    /// Up to the error.
    pub seen: Seen,
    /// Its kind.
    pub error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    index: usize,
    stage: Option<String>,
    done: Option<usize>,
    b64_json: Option<String>,
    size: Option<String>,
    error: Option<Value>,
}

impl Ask {
    /// Draws the pictures of a prompt.
    pub async fn send(&self, channel: Channel, prompt: &str, seed: u64) -> Outcome {
        let sent = Instant::now();
        let mut following = Following {
            ask: self,
            sent,
            seen: Seen::default(),
            tokens: BTreeMap::new(),
        };
        let request = self.request(prompt, seed);
        let followed = timeout_at(sent + self.timeout, following.follow(channel, request));
        let error = match followed.await {
            Ok(followed) => followed.err(),
            Err(_) => Some("timeout".to_owned()),
        };
        let mut seen = following.seen;
        seen.tokens = following.tokens.values().sum();
        Outcome { seen, error }
    }

    fn request(&self, prompt: &str, seed: u64) -> Request<Body> {
        let mut body = json!({
            "prompt": prompt, "n": self.n, "seed": seed, "stream": true, "progress": true,
            "partial_images": self.partial_images,
        });
        if let Some(size) = &self.size {
            body["size"] = json!(size);
        }
        if let Some(steps) = self.steps {
            body["num_inference_steps"] = json!(steps);
        }
        let mut request = Request::new(Body::new(body.to_string()));
        *request.method_mut() = tonic::codegen::http::Method::POST;
        *request.uri_mut() = PATH.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/json"),
        );
        let key = self.api_key.as_ref().map(|key| format!("Bearer {key}"));
        if let Some(key) = key.and_then(|key| key.try_into().ok()) {
            headers.insert(header::AUTHORIZATION, key);
        }
        request
    }
}

/// A request on its way.
struct Following<'a> {
    ask: &'a Ask,
    sent: Instant,
    seen: Seen,
    /// Tokens of each picture.
    tokens: BTreeMap<usize, usize>,
}

impl Following<'_> {
    /// Follows a request to its end.
    ///
    /// # Errors
    /// The kind of what went wrong.
    async fn follow(&mut self, mut channel: Channel, request: Request<Body>) -> Result<(), String> {
        let broken = |_| "connection".to_owned();
        std::future::poll_fn(|context| channel.poll_ready(context))
            .await
            .map_err(broken)?;
        let answer = channel.call(request).await.map_err(broken)?;
        if answer.status() != StatusCode::OK {
            return Err(refusal(answer).await);
        }
        let mut body = answer.into_body();
        let mut events = Events::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| "stream broken")?;
            if let Some(bytes) = frame.data_ref() {
                events.feed(bytes)?;
            }
            while let Some(data) = events.next() {
                let event = serde_json::from_str(&data).map_err(|_| "event not JSON")?;
                self.on_event(event)?;
            }
        }
        match self.seen.pictures.len() == self.ask.n {
            true => Ok(()),
            false => Err("stream ended early".into()),
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), String> {
        let now = self.sent.elapsed().as_secs_f64();
        if let Some(error) = event.error {
            return Err(kind(&error, "failed"));
        }
        match (event.kind.as_str(), event.stage.as_deref()) {
            ("image_generation.progress", Some("started")) => self.seen.started = Some(now),
            ("image_generation.progress", Some("drawing")) => {
                let done = event.done.unwrap_or_default();
                if done > 0 {
                    self.seen.first_token.get_or_insert(now);
                }
                self.tokens.insert(event.index, done);
            }
            ("image_generation.partial_image", _) => {
                self.seen.first_partial.get_or_insert(now);
            }
            ("image_generation.completed", _) => {
                check(&event, self.ask.size.as_deref())?;
                self.seen.pictures.push(now);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Checks that a picture is a PNG of the size that was asked for and is told.
fn check(event: &Event, asked: Option<&str>) -> Result<(), &'static str> {
    let data = event.b64_json.as_deref().ok_or("no picture")?;
    let data = BASE64_STANDARD
        .decode(data)
        .map_err(|_| "picture not base64")?;
    let picture = image::load_from_memory_with_format(&data, ImageFormat::Png);
    let picture = picture.map_err(|_| "picture not PNG")?;
    let size = format!("{}x{}", picture.width(), picture.height());
    let told = event.size.as_deref();
    let asked = asked.filter(|asked| *asked != "auto");
    match [told, asked]
        .into_iter()
        .flatten()
        .all(|wanted| wanted == size)
    {
        true => Ok(()),
        false => Err("picture of another size"),
    }
}

/// The kind of a request that was not taken: its status, and what the server calls it.
async fn refusal(answer: Response<Body>) -> String {
    let status = answer.status().as_u16().to_string();
    let body = http_body_util::Limited::new(answer.into_body(), MAX_ERROR);
    let Ok(body) = body.collect().await else {
        return status;
    };
    let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    kind(&body["error"], &status)
}

fn kind(error: &Value, otherwise: &str) -> String {
    let named = error["code"].as_str().or(error["type"].as_str());
    match named {
        Some(named) => format!("{otherwise} {named}"),
        None => otherwise.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use xomni_engine::picture::{Picture, png};

    use super::*;

    fn completed(width: usize, told: &str) -> Event {
        let picture = Picture {
            width,
            height: 16,
            rgb: vec![9; width * 16 * 3],
        };
        let png = png::encode(&picture).expect("a picture");
        serde_json::from_value(json!({
            "type": "image_generation.completed", "size": told,
            "b64_json": BASE64_STANDARD.encode(png),
        }))
        .expect("an event")
    }

    #[test]
    fn only_pictures_of_the_right_size_count() {
        assert_eq!(check(&completed(32, "32x16"), Some("32x16")), Ok(()));
        assert_eq!(check(&completed(32, "32x16"), Some("auto")), Ok(()));
        assert!(check(&completed(32, "32x16"), Some("16x16")).is_err());
        assert!(check(&completed(32, "16x16"), None).is_err());
        let mut broken = completed(32, "32x16");
        broken.b64_json = Some("AAAA".into());
        assert_eq!(check(&broken, None), Err("picture not PNG"));
    }

    #[test]
    fn errors_are_told_apart() {
        let error = json!({"code": "rate_limit_exceeded", "type": "requests"});
        assert_eq!(kind(&error, "429"), "429 rate_limit_exceeded");
        assert_eq!(
            kind(&json!({"code": null, "type": "server_error"}), "503"),
            "503 server_error"
        );
        assert_eq!(kind(&Value::Null, "502"), "502");
    }
}
