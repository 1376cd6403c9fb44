//! The answers to a chat as they come together.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use xomni_engine::schedule::FinishReason;

use crate::{
    front::chat::Asked,
    pipeline::{ChatEvent, ImageEvent},
};

/// All answers to a chat, so far.
#[derive(Debug)]
pub struct Answer {
    /// What every part of it says of itself.
    pub head: Head,
    asked: Asked,
    choices: Vec<Choice>,
}

/// What names an answer.
#[derive(Debug, Clone, Serialize)]
pub struct Head {
    id: String,
    created: u64,
    model: String,
    seed: u64,
}

/// One answer.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    text_tokens: usize,
    text_end: Option<FinishReason>,
    picture: Option<Picture>,
    picture_tokens: usize,
    ended: bool,
}

/// What is new of one answer.
#[derive(Debug, Default)]
pub struct Delta {
    /// Index of the answer.
    pub index: usize,
    /// More of its text.
    pub text: Option<String>,
    /// Its picture.
    pub picture: Option<Picture>,
    /// Why it ends, if it does.
    pub finish: Option<&'static str>,
}

/// A picture as clients know it from what they send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Picture {
    r#type: &'static str,
    image_url: ImageUrl,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ImageUrl {
    url: String,
}

/// What was read and written.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

/// A whole answer.
#[derive(Debug, Serialize)]
pub struct Completion {
    object: &'static str,
    #[serde(flatten)]
    head: Head,
    choices: Vec<WholeChoice>,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct WholeChoice {
    index: usize,
    message: Message,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
struct Message {
    role: &'static str,
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<Picture>,
}

impl Picture {
    fn of(png: &[u8]) -> Self {
        let url = format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png));
        Self {
            r#type: "image_url",
            image_url: ImageUrl { url },
        }
    }
}

impl Answer {
    /// Nothing yet.
    pub fn new(model: &str, asked: &Asked) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            head: Head {
                id: format!("chatcmpl-{}", asked.request_id),
                created: created.map_or(0, |since| since.as_secs()),
                model: model.to_owned(),
                seed: asked.seed,
            },
            choices: (0..asked.n).map(|_| Choice::default()).collect(),
            asked: asked.clone(),
        }
    }

    /// Number of answers.
    pub fn count(&self) -> usize {
        self.choices.len()
    }

    /// Takes what happened; what is new of an answer then.
    pub fn on_event(&mut self, event: ChatEvent) -> Option<Delta> {
        let index = match &event {
            ChatEvent::Text(event) => event.index,
            ChatEvent::Image(ImageEvent::Tokens { index, .. }) => *index,
            ChatEvent::Image(ImageEvent::Decoding { .. } | ImageEvent::Partial { .. }) => {
                return None;
            }
            ChatEvent::Image(ImageEvent::Done(image)) => image.index,
        };
        let choice = self.choices.get_mut(index)?;
        let mut delta = Delta {
            index,
            ..Delta::default()
        };
        match event {
            ChatEvent::Text(event) => {
                choice.text_tokens = event.tokens;
                choice.text_end = event.finished;
                choice.text.push_str(&event.text);
                delta.text = (!event.text.is_empty()).then_some(event.text);
            }
            ChatEvent::Image(ImageEvent::Tokens { done, .. }) => choice.picture_tokens = done,
            ChatEvent::Image(ImageEvent::Decoding { .. } | ImageEvent::Partial { .. }) => {}
            ChatEvent::Image(ImageEvent::Done(image)) => {
                let picture = Picture::of(&image.png);
                choice.picture = Some(picture.clone());
                delta.picture = Some(picture);
            }
        }
        let written = !self.asked.text || choice.text_end.is_some();
        let drawn = !self.asked.image || choice.picture.is_some();
        if written && drawn && !choice.ended {
            choice.ended = true;
            delta.finish = Some(choice.finish_reason());
        }
        let new = delta.text.is_some() || delta.picture.is_some() || delta.finish.is_some();
        new.then_some(delta)
    }

    /// What was read and written so far.
    pub fn usage(&self) -> Usage {
        let tokens = |choice: &Choice| choice.text_tokens + choice.picture_tokens;
        let completion_tokens = self.choices.iter().map(tokens).sum();
        let prompt_tokens = self.asked.prompt_tokens;
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }

    /// All of it, once it is complete.
    pub fn completion(self) -> Completion {
        let usage = self.usage();
        let text = self.asked.text;
        let choices = self.choices.into_iter().enumerate();
        let choices = choices.map(|(index, choice)| WholeChoice {
            index,
            finish_reason: choice.finish_reason(),
            message: Message {
                role: "assistant",
                content: text.then_some(choice.text),
                refusal: None,
                images: choice.picture.into_iter().collect(),
            },
            logprobs: None,
        });
        Completion {
            object: "chat.completion",
            choices: choices.collect(),
            head: self.head,
            usage,
        }
    }
}

impl Choice {
    fn finish_reason(&self) -> &'static str {
        match self.text_end {
            Some(FinishReason::Length) => "length",
            Some(FinishReason::Stop) | None => "stop",
        }
    }
}
