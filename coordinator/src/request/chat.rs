//! Chats: what a client asks for in words and pictures, and its validated form.

mod limits;
mod model;
#[cfg(test)]
mod tests;

use std::time::Instant;

use bytes::Bytes;
use xomni_engine::{
    sampling::SamplingParams,
    text::{Grid, Role},
};

pub use self::{
    limits::{ChatLimits, MAX_PICTURE_BYTES},
    model::ChatModel,
};
use super::{ImageJob, ImageRequest};

/// One turn of a chat as a client states it.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub content: Vec<Content>,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Text.
    Text(String),
    /// A PNG or JPEG file.
    Picture(Bytes),
}

/// A chat to go on with, as a client states it; what is `None` takes the model's default.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// What was said so far.
    pub messages: Vec<ChatMessage>,
    /// Number of answers.
    pub n: Option<usize>,
    /// Key of all randomness; random where not given.
    pub seed: Option<u64>,
    /// Longest answer, in tokens.
    pub max_tokens: Option<usize>,
    /// Sampling temperature; 0, the default, is greedy.
    pub temperature: Option<f32>,
    /// Candidates kept by score; 0 keeps all.
    pub top_k: Option<usize>,
    /// Nucleus mass.
    pub top_p: Option<f32>,
    /// Smallest kept probability relative to the largest.
    pub min_p: Option<f32>,
    /// Strings that end an answer and are not part of it.
    pub stop: Vec<String>,
    /// Whether an answer is text.
    pub text: bool,
    /// Whether an answer is a picture, drawn from the text of the last user message, and how; its
    /// prompt, number and seed are those of the chat.
    pub image: Option<ImageRequest>,
    /// Lower runs first.
    pub priority: i32,
}

impl Default for ChatRequest {
    fn default() -> Self {
        Self {
            messages: vec![],
            n: None,
            seed: None,
            max_tokens: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            stop: vec![],
            text: true,
            image: None,
            priority: 0,
        }
    }
}

/// A chat that can be answered: in text, with pictures, or both.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatJob {
    /// Names the request in logs and traces: 32 hexadecimal digits.
    pub request_id: String,
    /// Number of answers.
    pub n: usize,
    /// Key of all randomness.
    pub seed: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// The text of the answers.
    pub text: Option<TextJob>,
    /// Their pictures.
    pub image: Option<ImageJob>,
}

/// Texts to write.
#[derive(Debug, Clone, PartialEq)]
pub struct TextJob {
    /// Names the request in logs and traces.
    pub request_id: String,
    /// Lower runs first.
    pub priority: i32,
    /// What was said so far.
    pub messages: Vec<ChatMessage>,
    /// Sizes of its pictures in tokens, in order.
    pub grids: Vec<Grid>,
    /// The prompt in tokens, every code of every picture 0.
    pub prompt: Vec<u32>,
    /// Number of texts.
    pub n: usize,
    /// Key of all randomness.
    pub seed: u64,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Longest text, in tokens.
    pub max_tokens: usize,
    /// Strings that end a text.
    pub stop: Vec<String>,
    /// When to give up; validation sets none.
    pub deadline: Option<Instant>,
}

impl ChatJob {
    /// Names it otherwise.
    pub fn set_request_id(&mut self, id: &str) {
        let text = self.text.as_mut().map(|text| &mut text.request_id);
        let image = self.image.as_mut().map(|image| &mut image.request_id);
        for name in [Some(&mut self.request_id), text, image]
            .into_iter()
            .flatten()
        {
            id.clone_into(name);
        }
    }

    /// Sets when to give up.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        if let Some(text) = &mut self.text {
            text.deadline = deadline;
        }
        if let Some(image) = &mut self.image {
            image.deadline = deadline;
        }
    }

    /// Rows that it takes at most, as admission counts them.
    pub fn cost(&self) -> u64 {
        let text = self.text.as_ref().map_or(0, TextJob::cost);
        text + self.image.as_ref().map_or(0, ImageJob::cost)
    }

    /// Whether pictures are read or drawn.
    pub fn needs_decoder(&self) -> bool {
        let reads = self
            .text
            .as_ref()
            .is_some_and(|text| !text.grids.is_empty());
        reads || self.image.is_some()
    }
}

impl TextJob {
    /// Rows that it takes at most: those of the prompt and of every answer.
    pub fn cost(&self) -> u64 {
        (self.prompt.len() + self.n * self.max_tokens) as u64
    }

    /// The picture files, in order.
    pub fn pictures(&self) -> impl Iterator<Item = &Bytes> {
        pictures(&self.messages)
    }
}

fn pictures(messages: &[ChatMessage]) -> impl Iterator<Item = &Bytes> {
    let content = messages.iter().flat_map(|message| &message.content);
    content.filter_map(|part| match part {
        Content::Picture(picture) => Some(picture),
        Content::Text(_) => None,
    })
}
