//! A byte-level BPE model that is complete: whatever bytes come, tokens come out.

use std::{collections::HashMap, path::Path};

use ahash::AHashMap;
use tokenizers::models::bpe::{BPE, BpeBuilder};

use super::{added::item, alphabet};
use crate::{Error, Result};

/// Vocabulary and merge rules, in order of rank, of one byte-level BPE model.
pub(super) struct BpeParts {
    pub vocab: HashMap<String, u32>,
    pub merges: Vec<(String, String)>,
    /// What the last symbol of a word ends with; empty for none.
    pub end_of_word: &'static str,
}

impl BpeParts {
    /// Builds the model with further options set by `options`. Every byte must have a symbol
    /// (inside a word and at its end), and no id may be given twice.
    pub fn build(self, file: &Path, options: impl FnOnce(BpeBuilder) -> BpeBuilder) -> Result<BPE> {
        for byte in 0..=u8::MAX {
            let symbol = alphabet::symbol(byte).to_string();
            for symbol in [format!("{symbol}{}", self.end_of_word), symbol] {
                if !self.vocab.contains_key(&symbol) {
                    let reason = format!("missing, byte {byte:#04x} could not be written");
                    return Err(Error::checkpoint(file, item(&symbol), reason));
                }
            }
        }
        let mut tokens = HashMap::with_capacity(self.vocab.len());
        for (token, &id) in &self.vocab {
            if let Some(other) = tokens.insert(id, token) {
                let reason = format!("has id {id}, as has {}", item(other));
                return Err(Error::checkpoint(file, item(token), reason));
            }
        }
        let vocab: AHashMap<_, _> = self.vocab.into_iter().collect();
        let mut builder = BPE::builder().vocab_and_merges(vocab, self.merges);
        if !self.end_of_word.is_empty() {
            builder = builder.end_of_word_suffix(self.end_of_word.to_owned());
        }
        options(builder)
            .build()
            .map_err(|e| Error::checkpoint(file, "merges", e.to_string()))
    }
}
