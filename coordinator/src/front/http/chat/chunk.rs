//! Answers to a chat in chunks, as OpenAI streams them.

use serde::Serialize;

use super::{
    answer::{Answer, Delta, Head, Picture, Usage},
    json_of,
};
use crate::pipeline::ChatEvent;

/// Cuts answers into chunks.
#[derive(Debug)]
pub struct Chunks {
    answer: Answer,
    usage: bool,
}

#[derive(Debug, Serialize)]
struct Chunk<'a> {
    object: &'static str,
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<ChoiceChunk>,
    /// Null in all chunks but the last, where it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Debug, Serialize)]
struct ChoiceChunk {
    index: usize,
    delta: DeltaChunk,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct DeltaChunk {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<Picture>,
}

impl Chunks {
    /// The chunks of an answer that has not begun; `usage` adds one with its usage.
    pub fn new(answer: Answer, usage: bool) -> Self {
        Self { answer, usage }
    }

    /// The first chunk of every answer: who speaks.
    pub fn begin(&self) -> Vec<String> {
        let first = |index| {
            let delta = DeltaChunk {
                role: Some("assistant"),
                content: Some(String::new()),
                ..DeltaChunk::default()
            };
            self.chunk(index, delta, None)
        };
        (0..self.answer.count()).map(first).collect()
    }

    /// What is new, and in a chunk of its own why an answer ends.
    pub fn on_event(&mut self, event: ChatEvent) -> Vec<String> {
        let Some(new) = self.answer.on_event(event) else {
            return vec![];
        };
        let Delta {
            index,
            text,
            picture,
            finish,
        } = new;
        let mut chunks = vec![];
        if text.is_some() || picture.is_some() {
            let delta = DeltaChunk {
                role: None,
                content: text,
                images: picture.into_iter().collect(),
            };
            chunks.push(self.chunk(index, delta, None));
        }
        if finish.is_some() {
            chunks.push(self.chunk(index, DeltaChunk::default(), finish));
        }
        chunks
    }

    /// The usage, if it is asked for.
    pub fn end(&self) -> Vec<String> {
        let last = self
            .usage
            .then(|| self.write(vec![], Some(self.answer.usage())));
        last.into_iter().collect()
    }

    fn chunk(
        &self,
        index: usize,
        delta: DeltaChunk,
        finish_reason: Option<&'static str>,
    ) -> String {
        let choice = ChoiceChunk {
            index,
            delta,
            logprobs: None,
            finish_reason,
        };
        self.write(vec![choice], None)
    }

    fn write(&self, choices: Vec<ChoiceChunk>, usage: Option<Usage>) -> String {
        json_of(&Chunk {
            object: "chat.completion.chunk",
            head: &self.answer.head,
            choices,
            usage: self.usage.then_some(usage),
        })
    }
}
