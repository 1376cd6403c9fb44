//! Added tokens: strings that are cut out of raw text, longest match first, before the model
//! sees the rest.

use std::{collections::HashMap, path::Path};

use aho_corasick::{AhoCorasick, MatchKind};
use unicode_normalization::UnicodeNormalization;

use super::tokenizer_file::AddedToken;
use crate::{Error, Result};

/// A stretch of a text: one added token, or ordinary text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Span {
    Token(u32),
    Text(String),
}

/// Spans in order, in which no two texts touch.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Spans(Vec<Span>);

impl Spans {
    /// Appends one added token.
    pub fn token(&mut self, id: u32) {
        self.0.push(Span::Token(id));
    }

    /// Appends ordinary text; whatever it says, it never becomes an added token.
    pub fn text(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(Span::Text(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.0.push(Span::Text(text.to_owned())),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Span> {
        self.0.iter()
    }
}

/// The added tokens of one tokenizer.
#[derive(Debug)]
pub(super) struct AddedTokens {
    /// Matched in the text as it is.
    raw: Matcher,
    /// Matched in what remains, after NFC.
    normalized: Matcher,
    ids: HashMap<String, u32>,
}

#[derive(Debug)]
struct Matcher {
    automaton: AhoCorasick,
    tokens: Vec<AddedToken>,
}

impl AddedTokens {
    /// The added tokens that `file` lists.
    pub fn new(file: &Path, tokens: &[AddedToken]) -> Result<Self> {
        let mut ids = HashMap::with_capacity(tokens.len());
        for token in tokens {
            let error = |reason| Err(Error::checkpoint(file, item(&token.content), reason));
            if token.content.is_empty() {
                return error("an added token without text");
            }
            if token.single_word {
                return error("the option single_word is not supported");
            }
            if ids.insert(token.content.clone(), token.id).is_some() {
                return error("listed twice");
            }
        }
        let (normalized, raw) = tokens.iter().cloned().partition(|token| token.normalized);
        Ok(Self {
            raw: Matcher::new(file, raw)?,
            normalized: Matcher::new(file, normalized)?,
            ids,
        })
    }

    /// The id of an added token.
    pub fn id(&self, content: &str) -> Option<u32> {
        self.ids.get(content).copied()
    }

    /// Appends `text` to `spans`, its added tokens recognised.
    pub fn split(&self, text: &str, spans: &mut Spans) {
        self.raw.split(text, |piece| match piece {
            Piece::Token(id) => spans.token(id),
            Piece::Text(text) if self.normalized.tokens.is_empty() => spans.text(text),
            Piece::Text(text) => {
                let text: String = text.nfc().collect();
                self.normalized.split(&text, |piece| match piece {
                    Piece::Token(id) => spans.token(id),
                    Piece::Text(text) => spans.text(text),
                });
            }
        });
    }
}

enum Piece<'a> {
    Token(u32),
    Text(&'a str),
}

impl Matcher {
    fn new(file: &Path, tokens: Vec<AddedToken>) -> Result<Self> {
        let patterns = tokens.iter().map(|token| {
            if token.normalized {
                token.content.nfc().collect()
            } else {
                token.content.clone()
            }
        });
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(patterns.collect::<Vec<String>>())
            .map_err(|e| Error::checkpoint(file, "added_tokens", e.to_string()))?;
        Ok(Self { automaton, tokens })
    }

    fn split<'a>(&self, text: &'a str, mut emit: impl FnMut(Piece<'a>)) {
        let mut done = 0;
        for found in self.automaton.find_iter(text) {
            let (Some(before), Some(token)) = (
                text.get(done..found.start()),
                self.tokens.get(found.pattern().as_usize()),
            ) else {
                continue;
            };
            emit(Piece::Text(if token.lstrip {
                before.trim_end()
            } else {
                before
            }));
            emit(Piece::Token(token.id));
            let after = text.get(found.end()..).unwrap_or_default();
            let kept = if token.rstrip {
                after.trim_start()
            } else {
                after
            };
            done = text.len() - kept.len();
        }
        emit(Piece::Text(text.get(done..).unwrap_or_default()));
    }
}

/// How errors name a token.
pub(super) fn item(content: &str) -> String {
    let head: String = content.chars().take(40).collect();
    format!("token {head:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, content: &str) -> AddedToken {
        AddedToken {
            id,
            content: content.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        }
    }

    fn split(tokens: &[AddedToken], text: &str) -> Vec<Span> {
        let added = AddedTokens::new(Path::new("tokenizer.json"), tokens).unwrap();
        let mut spans = Spans::default();
        added.split(text, &mut spans);
        spans.0
    }

    #[test]
    fn the_longest_token_wins() {
        let tokens = [token(1, "<a>"), token(2, "<a><b>")];
        let text = |s: &str| Span::Text(s.to_owned());
        assert_eq!(
            split(&tokens, "x<a><b><a>y"),
            [text("x"), Span::Token(2), Span::Token(1), text("y")]
        );
        assert_eq!(split(&tokens, ""), []);
    }

    #[test]
    fn stripping_tokens_take_the_white_space_around_them() {
        let mut stripping = token(1, "<s>");
        (stripping.lstrip, stripping.rstrip) = (true, true);
        let text = |s: &str| Span::Text(s.to_owned());
        assert_eq!(
            split(&[stripping], "a  <s> <s>\n b"),
            [text("a"), Span::Token(1), Span::Token(1), text("b")]
        );
    }

    #[test]
    fn normalized_tokens_match_after_composition() {
        let mut cafe = token(1, "caf\u{e9}");
        cafe.normalized = true;
        let text = |s: &str| Span::Text(s.to_owned());
        assert_eq!(
            split(&[cafe], "a cafe\u{301}!"),
            [text("a "), Span::Token(1), text("!")]
        );
    }
}
