//! CLIP's tokenizer, as Hugging Face's slow `CLIPTokenizer` behaves where `ftfy` is not installed.

use std::{collections::HashMap, path::Path};

use regex::Regex;
use tokenizers::{Model, models::bpe::BPE};
use unicode_normalization::UnicodeNormalization;

use super::{
    added::{AddedTokens, Span, Spans, item},
    alphabet,
    bpe::BpeParts,
    tokenizer_file::AddedToken,
};
use crate::{
    Error, Result,
    files::{read_json, read_text},
};

/// Ids of an encoded prompt, padding included.
pub const CLIP_LENGTH: usize = 77;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const END_OF_WORD: &str = "</w>";
/// The reference reads no more merge rules than this, however many the file has.
const MAX_MERGES: usize = 49152 - 256 - 2;
const MAX_FILE_BYTES: u64 = 32 << 20;

/// Encodes prompts for the CLIP text model. Shared freely between threads.
#[derive(Debug)]
pub struct ClipTokenizer {
    bpe: BPE,
    special: AddedTokens,
    start: u32,
    end: u32,
    vocab: u32,
    dropped: Regex,
    words: Regex,
}

impl ClipTokenizer {
    /// Reads `vocab.json` and `merges.txt` of a tokenizer directory. [`Error::Io`] and
    /// [`Error::Checkpoint`] name the file.
    pub fn open(dir: &Path) -> Result<Self> {
        let vocab_path = dir.join("vocab.json");
        let vocab: HashMap<String, u32> = read_json(&vocab_path, MAX_FILE_BYTES)?;
        let id = |token: &str| {
            vocab
                .get(token)
                .copied()
                .ok_or_else(|| Error::checkpoint(&vocab_path, item(token), "missing"))
        };
        let (start, end) = (id(START)?, id(END)?);
        let special = AddedTokens::new(&vocab_path, &[control(START, start), control(END, end)])?;
        let largest = vocab.values().copied().max().unwrap_or_default();

        let merges_path = dir.join("merges.txt");
        let parts = BpeParts {
            merges: parse_merges(&merges_path, &read_text(&merges_path, MAX_FILE_BYTES)?)?,
            vocab,
            end_of_word: END_OF_WORD,
        };
        let pattern = |pattern| {
            Regex::new(pattern).map_err(|e| Error::Unsupported {
                what: "CLIP's word pattern".to_owned(),
                reason: e.to_string(),
            })
        };
        Ok(Self {
            bpe: parts.build(&vocab_path, |builder| builder)?,
            special,
            start,
            end,
            vocab: largest.saturating_add(1),
            dropped: pattern(r"[\p{C}\x{FFFD}&&[^\t\n\r]]")?,
            words: pattern(
                r"(?i)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
            )?,
        })
    }

    /// One more than the largest id.
    pub fn vocab(&self) -> u32 {
        self.vocab
    }

    /// [`CLIP_LENGTH`] ids: start, at most 75 of the text, end, and end again as padding.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_untruncated(text)?;
        ids.truncate(CLIP_LENGTH - 1);
        ids.resize(CLIP_LENGTH, self.end);
        Ok(ids)
    }

    /// Start, all ids of the text, end.
    pub fn encode_untruncated(&self, text: &str) -> Result<Vec<u32>> {
        let mut spans = Spans::default();
        self.special.split(text, &mut spans);
        let mut ids = vec![self.start];
        for span in spans.iter() {
            match span {
                Span::Token(id) => ids.push(*id),
                Span::Text(text) => self.encode_words(&self.clean(text), &mut ids)?,
            }
        }
        ids.push(self.end);
        Ok(ids)
    }

    fn encode_words(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        for word in self.words.find_iter(text) {
            match word.as_str() {
                START => ids.push(self.start),
                END => ids.push(self.end),
                word => {
                    let symbols: String = word.bytes().map(alphabet::symbol).collect();
                    let tokens = self
                        .bpe
                        .tokenize(&symbols)
                        .map_err(|e| Error::bad_input("prompt", e.to_string(), word))?;
                    ids.extend(tokens.iter().map(|token| token.id));
                }
            }
        }
        Ok(())
    }

    /// Lower-case words, separated by single spaces.
    fn clean(&self, text: &str) -> String {
        let text = self.dropped.replace_all(text, "");
        let mut spaced = String::with_capacity(text.len());
        for symbol in text.chars() {
            if is_ideograph(symbol) {
                spaced.extend([' ', symbol, ' ']);
            } else {
                spaced.push(symbol);
            }
        }
        let composed: String = spaced.nfc().collect();
        let words: Vec<String> = composed.split_whitespace().map(str::to_lowercase).collect();
        words.join(" ")
    }
}

fn control(content: &str, id: u32) -> AddedToken {
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

/// The rules behind the version line, best first.
fn parse_merges(path: &Path, text: &str) -> Result<Vec<(String, String)>> {
    let rule = |(number, line): (usize, &str)| {
        let mut halves = line.split_whitespace();
        match (halves.next(), halves.next(), halves.next()) {
            (Some(left), Some(right), None) => Ok((left.to_owned(), right.to_owned())),
            _ => {
                let line = format!("line {}", number + 1);
                Err(Error::checkpoint(path, line, "not a pair of tokens"))
            }
        }
    };
    let lines = text.trim().split('\n').enumerate();
    lines.skip(1).take(MAX_MERGES).map(rule).collect()
}

/// The blocks of CJK ideographs that BERT's tokenizer sets apart.
fn is_ideograph(symbol: char) -> bool {
    matches!(u32::from(symbol),
        0x4E00..=0x9FFF
        | 0x3400..=0x4DBF
        | 0x20000..=0x2A6DF
        | 0x2A700..=0x2B73F
        | 0x2B740..=0x2B81F
        | 0x2B820..=0x2CEAF
        | 0xF900..=0xFAFF
        | 0x2F800..=0x2FA1F)
}

#[cfg(test)]
mod tests;
