//! `tokenizer_config.json`, with `special_tokens_map.json` behind it.

use std::path::Path;

use serde::Deserialize;

use crate::{
    Result,
    files::{optional, read_json},
};

pub(super) const FILE: &str = "tokenizer_config.json";
const MAX_BYTES: u64 = 64 << 20;

/// Names of special tokens, and the chat template.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    chat_template: Option<Templates>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Added { content: String },
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TokenizerConfig {
    /// Reads both files of `dir`; either may be missing.
    pub fn open(dir: &Path) -> Result<Self> {
        let read = |name| optional(read_json::<Self>(&dir.join(name), MAX_BYTES));
        let config = read(FILE)?.unwrap_or_default();
        let map = read("special_tokens_map.json")?.unwrap_or_default();
        Ok(Self {
            bos_token: config.bos_token.or(map.bos_token),
            eos_token: config.eos_token.or(map.eos_token),
            pad_token: config.pad_token.or(map.pad_token),
            chat_template: config.chat_template,
        })
    }

    pub fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_ref().map(TokenText::text)
    }

    pub fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_ref().map(TokenText::text)
    }

    pub fn pad_token(&self) -> Option<&str> {
        self.pad_token.as_ref().map(TokenText::text)
    }

    /// The chat template; of several, the one named `default`.
    pub fn chat_template(&self) -> Option<&str> {
        match self.chat_template.as_ref()? {
            Templates::One(template) => Some(template),
            Templates::Named(all) => all
                .iter()
                .find(|named| named.name == "default")
                .map(|named| named.template.as_str()),
        }
    }
}

impl TokenText {
    fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Added { content: text } => text,
        }
    }
}
