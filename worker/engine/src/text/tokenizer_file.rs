//! The parts of a `tokenizer.json` that the supported tokenizers are made of. A component or an
//! option of another kind fails to parse, and the error names it.

use std::collections::HashMap;

use serde::Deserialize;

/// A `tokenizer.json` with a model of type `M`. Truncation, padding, post-processor and decoder
/// are not read: lengths are the callers' business, and the tokenizers here fix the other two.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizerFile<M> {
    pub normalizer: Option<Normalizer>,
    pub pre_tokenizer: Option<PreTokenizer>,
    pub model: M,
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
}

/// A token that is cut out of the text before everything else.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct AddedToken {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    #[serde(default)]
    pub normalized: bool,
    #[serde(default)]
    pub special: bool,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "type")]
pub(super) enum Normalizer {
    Sequence {
        normalizers: Vec<Normalizer>,
    },
    #[serde(rename = "NFC")]
    Nfc,
    Precompiled {
        precompiled_charsmap: String,
    },
    Strip {
        strip_left: bool,
        strip_right: bool,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "type")]
pub(super) enum PreTokenizer {
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
    Split {
        pattern: Pattern,
        behavior: String,
        #[serde(default)]
        invert: bool,
    },
    ByteLevel {
        add_prefix_space: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    Metaspace {
        replacement: char,
        #[serde(default = "always")]
        prepend_scheme: String,
        #[serde(default = "yes")]
        split: bool,
    },
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) enum Pattern {
    String(String),
    Regex(String),
}

#[derive(Debug, Deserialize)]
pub(super) struct BpeModel {
    pub dropout: Option<f32>,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub byte_fallback: bool,
    #[serde(default)]
    pub ignore_merges: bool,
    pub vocab: HashMap<String, u32>,
    pub merges: Vec<Merge>,
}

/// A merge rule, in the old or the new spelling.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Merge {
    Text(String),
    Pair(String, String),
}

#[derive(Debug, Deserialize)]
pub(super) struct UnigramModel {
    pub unk_id: Option<usize>,
    /// Pieces with their log-probabilities; the place in the list is the id.
    pub vocab: Vec<(String, f64)>,
    #[serde(default)]
    pub byte_fallback: bool,
}

impl BpeModel {
    /// The first option that is set to something other than plain byte-level BPE.
    pub fn unsupported_option(&self) -> Option<&'static str> {
        let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let options = [
            ("dropout", self.dropout.is_some_and(|p| p != 0.0)),
            (
                "continuing_subword_prefix",
                set(&self.continuing_subword_prefix),
            ),
            ("end_of_word_suffix", set(&self.end_of_word_suffix)),
            ("byte_fallback", self.byte_fallback),
        ];
        options
            .into_iter()
            .find_map(|(name, is_set)| is_set.then_some(name))
    }
}

impl Merge {
    /// Both halves; `None` unless there are exactly two.
    pub fn into_pair(self) -> Option<(String, String)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Text(text) => match text.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => Some((left.into(), right.into())),
                _ => None,
            },
        }
    }
}

fn yes() -> bool {
    true
}

fn always() -> String {
    "always".to_owned()
}
