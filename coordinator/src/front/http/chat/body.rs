//! The body of a request for a chat, as OpenAI has it.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer},
};
use serde_json::Value;
use xomni_engine::{Error, Result, text};

use super::data_url;
use crate::{
    request::{ChatMessage, ChatRequest, Content, ImageRequest, random_seed},
    uploads::Uploads,
};

/// Largest seed that every JSON reader keeps: a double holds all integers up to it.
const MAX_JSON_SEED: u64 = (1 << 53) - 1;

/// A request for a chat. Fields that are not here or among [`SETTINGS`] are ignored.
#[derive(Debug, Deserialize)]
pub struct ChatBody {
    messages: Vec<MessageBody>,
    model: Option<String>,
    n: Option<usize>,
    seed: Option<u64>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    stop: Option<Stop>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    modalities: Option<Vec<Modality>>,
    image: Option<ImageBody>,
    priority: Option<i32>,
    #[serde(flatten)]
    others: serde_json::Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct MessageBody {
    role: Role,
    content: Option<ContentBody>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    /// What newer clients call instructions to the model.
    Developer,
    User,
    Assistant,
}

/// Text, or parts.
#[derive(Debug)]
struct ContentBody(Vec<PartBody>);

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum PartBody {
    Text { text: String },
    ImageUrl { image_url: ImageUrl },
    File { file: FileBody },
}

#[derive(Debug, Deserialize)]
struct ImageUrl {
    #[serde(deserialize_with = "data_url::picture")]
    url: Bytes,
}

#[derive(Debug, Deserialize)]
struct FileBody {
    file_id: Option<String>,
    #[serde(default, deserialize_with = "data_url::optional_picture")]
    file_data: Option<Bytes>,
}

/// One string, or several.
#[derive(Debug)]
struct Stop(Vec<String>);

#[derive(Debug, Clone, Copy, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Modality {
    Text,
    Image,
}

/// How pictures are drawn.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageBody {
    size: Option<String>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    guidance_scale: Option<f32>,
    num_inference_steps: Option<usize>,
}

/// Settings that this model does not have, and the value with which each changes nothing.
const SETTINGS: [(&str, &str); 17] = [
    ("audio", "null"),
    ("frequency_penalty", "0"),
    ("function_call", "\"none\""),
    ("functions", "[]"),
    ("length_penalty", "1"),
    ("logit_bias", "{}"),
    ("logprobs", "false"),
    ("prediction", "null"),
    ("presence_penalty", "0"),
    ("reasoning_effort", "\"none\""),
    ("repetition_penalty", "1"),
    ("response_format", "{\"type\":\"text\"}"),
    ("store", "false"),
    ("tool_choice", "\"none\""),
    ("tools", "[]"),
    ("top_logprobs", "0"),
    ("web_search_options", "null"),
];

impl ChatBody {
    /// Whether the answer is streamed, and then whether its usage is.
    pub fn streamed(&self) -> Option<bool> {
        let options = self.stream_options;
        let usage = options.is_some_and(|options| options.include_usage);
        self.stream.unwrap_or(false).then_some(usage)
    }

    /// The request for `model`; pictures that `tenant` has uploaded are fetched.
    ///
    /// # Errors
    /// [`Error::BadInput`] for another model, what is not implemented, an unknown file, or fields
    /// that contradict each other.
    pub fn request(self, model: &str, tenant: &str, uploads: &Uploads) -> Result<ChatRequest> {
        if let Some(asked) = self.model.filter(|asked| asked != model) {
            return Err(Error::bad_input("model", format!("must be {model}"), asked));
        }
        settings(&self.others)?;
        if self.stream_options.is_some() && self.stream != Some(true) {
            let limit = "is only for a chat with stream: true";
            return Err(Error::bad_input("stream_options", limit, "stream: false"));
        }
        let max_tokens = match (self.max_completion_tokens, self.max_tokens) {
            (Some(new), Some(old)) if new != old => {
                let limit = format!("must be max_completion_tokens, {new}, where both are given");
                return Err(Error::bad_input("max_tokens", limit, old));
            }
            (new, old) => new.or(old),
        };
        let modalities = self.modalities.unwrap_or_else(|| vec![Modality::Text]);
        let draws = modalities.contains(&Modality::Image);
        if self.image.is_some() && !draws {
            let limit = "is only for a chat whose modalities include image";
            return Err(Error::bad_input("image", limit, "text alone"));
        }
        let messages = self.messages.into_iter();
        let messages = messages.map(|message| message.turn(tenant, uploads));
        Ok(ChatRequest {
            messages: messages.collect::<Result<_>>()?,
            n: self.n,
            seed: Some(self.seed.unwrap_or_else(|| random_seed() & MAX_JSON_SEED)),
            max_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            stop: self.stop.map_or_else(Vec::new, |Stop(stop)| stop),
            text: modalities.contains(&Modality::Text),
            image: draws.then(|| self.image.unwrap_or_default().settings()),
            priority: self.priority.unwrap_or_default(),
        })
    }
}

impl MessageBody {
    fn turn(self, tenant: &str, uploads: &Uploads) -> Result<ChatMessage> {
        let role = match self.role {
            Role::System | Role::Developer => text::Role::System,
            Role::User => text::Role::User,
            Role::Assistant => text::Role::Assistant,
        };
        let parts = self
            .content
            .map_or_else(Vec::new, |ContentBody(parts)| parts);
        let content = parts.into_iter().map(|part| part.content(tenant, uploads));
        Ok(ChatMessage {
            role,
            content: content.collect::<Result<_>>()?,
        })
    }
}

impl PartBody {
    fn content(self, tenant: &str, uploads: &Uploads) -> Result<Content> {
        let picture = match self {
            Self::Text { text } => return Ok(Content::Text(text)),
            Self::ImageUrl { image_url } => image_url.url,
            Self::File { file } => match (file.file_id, file.file_data) {
                (Some(id), None) => uploads.get(tenant, &id)?.bytes,
                (None, Some(picture)) => picture,
                (Some(_), Some(_)) | (None, None) => {
                    let limit = "must have either a file_id or file_data";
                    return Err(Error::bad_input("file", limit, "both or neither"));
                }
            },
        };
        Ok(Content::Picture(picture))
    }
}

impl ImageBody {
    fn settings(self) -> ImageRequest {
        ImageRequest {
            size: self.size,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            guidance_scale: self.guidance_scale,
            num_inference_steps: self.num_inference_steps,
            ..ImageRequest::default()
        }
    }
}

/// Refuses settings that the model does not have.
fn settings(given: &serde_json::Map<String, Value>) -> Result<()> {
    for (field, neutral) in SETTINGS {
        let set = given.get(field).filter(|value| !value.is_null());
        if let Some(value) = set.filter(|value| !same(value, neutral)) {
            let limit = format!("is not implemented; must be absent or {neutral}");
            return Err(Error::bad_input(field, limit, value));
        }
    }
    Ok(())
}

/// Whether a value is the one that is written so; numbers are compared as such.
fn same(value: &Value, written: &str) -> bool {
    let neutral: Value = serde_json::from_str(written).unwrap_or_default();
    match (value.as_f64(), neutral.as_f64()) {
        (Some(value), Some(neutral)) => value == neutral,
        _ => *value == neutral,
    }
}

impl<'de> Deserialize<'de> for ContentBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrParts;

        impl<'de> Visitor<'de> for TextOrParts {
            type Value = ContentBody;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of parts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ContentBody, E> {
                let text = text.to_owned();
                Ok(ContentBody(vec![PartBody::Text { text }]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<ContentBody, A::Error> {
                let parts = Vec::deserialize(SeqAccessDeserializer::new(parts))?;
                Ok(ContentBody(parts))
            }
        }

        deserializer.deserialize_any(TextOrParts)
    }
}

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrSeveral;

        impl<'de> Visitor<'de> for OneOrSeveral {
            type Value = Stop;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E: de::Error>(self, stop: &str) -> Result<Stop, E> {
                Ok(Stop(vec![stop.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, stops: A) -> Result<Stop, A::Error> {
                let stops = Vec::deserialize(SeqAccessDeserializer::new(stops))?;
                Ok(Stop(stops))
            }
        }

        deserializer.deserialize_any(OneOrSeveral)
    }
}
