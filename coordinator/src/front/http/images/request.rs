//! The body of `POST /v1/images/generations`.

use serde::Deserialize;
use xomni_engine::{Error, Result};

use super::format::{Encoding, OutputFormat};
use crate::{
    front::http::json::number,
    request::{ImageRequest, random_seed},
};

/// Largest seed that every JSON reader keeps: a double holds all integers up to it.
const MAX_JSON_SEED: u64 = (1 << 53) - 1;

/// What a client states. Fields that are not here are ignored, as OpenAI does.
#[derive(Debug, Deserialize)]
pub struct GenerationRequest {
    prompt: String,
    model: Option<String>,
    n: Option<u32>,
    size: Option<String>,
    response_format: Option<ResponseFormat>,
    output_format: Option<OutputFormat>,
    output_compression: Option<u32>,
    stream: Option<bool>,
    partial_images: Option<u32>,
    /// Whether a stream tells of progress between pictures.
    progress: Option<bool>,
    background: Option<Background>,
    quality: Option<String>,
    style: Option<String>,
    seed: Option<u64>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    #[serde(default, deserialize_with = "number")]
    top_p: Option<f32>,
    min_p: Option<f32>,
    guidance_scale: Option<f32>,
    num_inference_steps: Option<u32>,
    priority: Option<i32>,
}

/// How a picture is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Within the answer.
    B64Json,
    /// By an address of this coordinator, for a while.
    Url,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Background {
    Auto,
    Opaque,
    Transparent,
}

/// How the pictures of a request are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// By what.
    pub response: ResponseFormat,
    /// As what.
    pub encoding: Encoding,
    /// As they come, if so.
    pub stream: bool,
    /// Whether a stream tells of progress between pictures.
    pub progress: bool,
}

impl GenerationRequest {
    /// What is asked of `model`, and how it is delivered.
    ///
    /// # Errors
    /// [`Error::BadInput`] for another model, for what it cannot do, and for options that exclude
    /// each other.
    pub fn read(self, model: &str) -> Result<(ImageRequest, Delivery)> {
        if let Some(given) = self.model.as_ref().filter(|given| *given != model) {
            return Err(Error::bad_input("model", format!("must be {model}"), given));
        }
        if self.background == Some(Background::Transparent) {
            let limit = "must be opaque or auto: the model draws no transparency";
            return Err(Error::bad_input("background", limit, "transparent"));
        }
        let quality = self.quality.as_deref();
        if let Some(given) = quality.filter(|given| !matches!(*given, "auto" | "standard")) {
            let limit = "must be auto or standard: see num_inference_steps";
            return Err(Error::bad_input("quality", limit, given));
        }
        if let Some(given) = &self.style {
            let limit = "must not be given: the model takes its style from the prompt";
            return Err(Error::bad_input("style", limit, given));
        }
        let delivery = self.delivery()?;
        let count = |value: Option<u32>| value.map(|value| value as usize);
        let request = ImageRequest {
            prompt: self.prompt,
            size: self.size,
            n: count(self.n),
            seed: Some(self.seed.unwrap_or_else(|| random_seed() & MAX_JSON_SEED)),
            temperature: self.temperature,
            top_k: count(self.top_k),
            top_p: self.top_p,
            min_p: self.min_p,
            guidance_scale: self.guidance_scale,
            num_inference_steps: count(self.num_inference_steps),
            partial_images: count(self.partial_images),
            priority: self.priority.unwrap_or_default(),
        };
        Ok((request, delivery))
    }

    fn delivery(&self) -> Result<Delivery> {
        let stream = self.stream.unwrap_or_default();
        let delivery = Delivery {
            response: self.response_format.unwrap_or(ResponseFormat::B64Json),
            encoding: Encoding::new(
                self.output_format.unwrap_or(OutputFormat::Png),
                self.output_compression,
            )?,
            stream,
            progress: self.progress.unwrap_or_default(),
        };
        let streamed = "must not be given without stream: true";
        if let Some(given) = self.partial_images.filter(|given| *given > 0 && !stream) {
            return Err(Error::bad_input("partial_images", streamed, given));
        }
        if delivery.progress && !stream {
            return Err(Error::bad_input("progress", streamed, true));
        }
        if stream && delivery.response == ResponseFormat::Url {
            let limit = "must be b64_json where stream is true";
            return Err(Error::bad_input("response_format", limit, "url"));
        }
        Ok(delivery)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::front::http::json::parse;

    fn read(more: Value) -> Result<(ImageRequest, Delivery)> {
        let mut body = json!({"prompt": "a cat"});
        let Value::Object(more) = more else {
            panic!("fields")
        };
        body.as_object_mut().expect("an object").extend(more);
        let request: GenerationRequest = parse(body.to_string().as_bytes()).expect("well formed");
        request.read("tiny")
    }

    #[test]
    fn what_changes_nothing_is_taken() {
        let (request, delivery) = read(json!({
            "model": "tiny", "user": "u", "moderation": "low", "background": "auto",
            "quality": "standard", "n": null, "partial_images": 0, "unheard_of": [1],
        }))
        .expect("taken");
        assert_eq!(request.n, None);
        assert!(request.seed.expect("chosen") <= MAX_JSON_SEED);
        assert_eq!(delivery.response, ResponseFormat::B64Json);
        assert_eq!(delivery.encoding.format(), OutputFormat::Png);
    }

    #[test]
    fn a_small_number_is_not_none() {
        let (request, _) = read(json!({"top_p": 5e-324})).expect("taken");
        assert_eq!(request.top_p, Some(f32::MIN_POSITIVE));
        let (request, _) = read(json!({"top_p": 0})).expect("taken");
        assert_eq!(request.top_p, Some(0.0), "refused by its bounds");
        assert_eq!(read(json!({})).expect("taken").0.top_p, None);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (name, more) in [
            ("model", json!({"model": "dall-e-3"})),
            ("background", json!({"background": "transparent"})),
            ("quality", json!({"quality": "hd"})),
            ("style", json!({"style": "vivid"})),
            ("partial_images", json!({"partial_images": 1})),
            ("progress", json!({"progress": true})),
            (
                "response_format",
                json!({"response_format": "url", "stream": true}),
            ),
            (
                "output_compression",
                json!({"output_format": "webp", "output_compression": 50}),
            ),
            (
                "output_compression",
                json!({"output_format": "jpeg", "output_compression": 101}),
            ),
        ] {
            match read(more) {
                Err(Error::BadInput { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
