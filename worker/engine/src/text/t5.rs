//! T5's tokenizer: SentencePiece unigram, from its `tokenizer.json`.

use std::path::Path;

use tokenizers::{
    models::unigram::Unigram,
    normalizers::{
        NormalizerWrapper, Sequence,
        replace::{Replace, ReplacePattern},
        strip::Strip,
    },
    pre_tokenizers::metaspace::{Metaspace, PrependScheme},
};

use super::{
    added::{AddedTokens, Span, Spans, item},
    charsmap,
    tokenizer_file::{Normalizer, Pattern, PreTokenizer, TokenizerFile, UnigramModel},
};
use crate::{Error, Result, files::read_json};

/// Ids of an encoded prompt, padding included.
pub const T5_LENGTH: usize = 512;

const SPACE: char = '\u{2581}';
const SPACES: &str = " {2,}";
const MAX_FILE_BYTES: u64 = 32 << 20;
const MAX_TEXT_BYTES: usize = super::tokenizer::MAX_TEXT_BYTES;

/// Encodes prompts for the T5 encoder. Shared freely between threads.
#[derive(Debug)]
pub struct T5Tokenizer {
    plain: tokenizers::Tokenizer,
    added: AddedTokens,
    pad: u32,
    end: u32,
    vocab: u32,
}

impl T5Tokenizer {
    /// Reads `tokenizer.json` of a tokenizer directory. [`Error::Io`] and [`Error::Checkpoint`]
    /// name the file.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let file: TokenizerFile<UnigramModel> = read_json(&path, MAX_FILE_BYTES)?;
        let normalizer = normalizer(&path, file.normalizer.as_ref())?;
        let metaspace = PreTokenizer::Metaspace {
            replacement: SPACE,
            prepend_scheme: "always".to_owned(),
            split: true,
        };
        if file.pre_tokenizer.as_ref() != Some(&metaspace) {
            let reason = "only Metaspace that is always prepended and split is supported";
            return Err(Error::checkpoint(&path, "pre_tokenizer", reason));
        }
        if file.model.byte_fallback {
            return Err(Error::checkpoint(&path, "byte_fallback", "not supported"));
        }
        let unknown = file
            .model
            .unk_id
            .ok_or_else(|| Error::checkpoint(&path, "unk_id", "missing"))?;
        let pieces = u32::try_from(file.model.vocab.len()).unwrap_or(u32::MAX);
        let largest_added = file.added_tokens.iter().map(|token| token.id).max();
        let vocab = pieces.max(largest_added.map_or(0, |id| id.saturating_add(1)));
        let model = Unigram::from(file.model.vocab, Some(unknown), false)
            .map_err(|e| Error::checkpoint(&path, "model", e.to_string()))?;
        let mut plain = tokenizers::Tokenizer::new(model);
        plain
            .with_normalizer(Some(normalizer))
            .with_pre_tokenizer(Some(Metaspace::new(SPACE, PrependScheme::Always, true)));
        let added = AddedTokens::new(&path, &file.added_tokens)?;
        let id = |token: &str| {
            added
                .id(token)
                .or_else(|| plain.token_to_id(token))
                .ok_or_else(|| Error::checkpoint(&path, item(token), "missing"))
        };
        let (pad, end) = (id("<pad>")?, id("</s>")?);
        Ok(Self {
            plain,
            added,
            pad,
            end,
            vocab,
        })
    }

    /// One more than the largest id.
    pub fn vocab(&self) -> u32 {
        self.vocab
    }

    /// [`T5_LENGTH`] ids: at most 511 of the text, the end token, padding.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_content(text)?;
        ids.truncate(T5_LENGTH - 1);
        ids.push(self.end);
        ids.resize(T5_LENGTH, self.pad);
        Ok(ids)
    }

    /// All ids of the text, and the end token.
    pub fn encode_untruncated(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_content(text)?;
        ids.push(self.end);
        Ok(ids)
    }

    fn encode_content(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT_BYTES {
            let limit = format!("at most {MAX_TEXT_BYTES} bytes");
            return Err(Error::bad_input("prompt", limit, text.len()));
        }
        let mut spans = Spans::default();
        self.added.split(text, &mut spans);
        let mut ids = Vec::new();
        for span in spans.iter() {
            match span {
                Span::Token(id) => ids.push(*id),
                Span::Text(text) => {
                    let encoding = self.plain.encode_fast(text.as_str(), false);
                    let encoding = encoding.map_err(|e| {
                        Error::bad_input("prompt", format!("encodable text ({e})"), text)
                    })?;
                    ids.extend_from_slice(encoding.get_ids());
                }
            }
        }
        Ok(ids)
    }
}

/// Character map, white space stripped at the end, runs of spaces joined; anything else is refused.
fn normalizer(path: &Path, file: Option<&Normalizer>) -> Result<Sequence> {
    let error = |reason: String| Error::checkpoint(path, "normalizer", reason);
    let Some(Normalizer::Sequence { normalizers }) = file else {
        return Err(error("only a sequence is supported".to_owned()));
    };
    let [
        Normalizer::Precompiled {
            precompiled_charsmap,
        },
        rest @ ..,
    ] = normalizers.as_slice()
    else {
        return Err(error("does not begin with a character map".to_owned()));
    };
    let expected = [
        Normalizer::Strip {
            strip_left: false,
            strip_right: true,
        },
        Normalizer::Replace {
            pattern: Pattern::Regex(SPACES.to_owned()),
            content: SPACE.to_string(),
        },
    ];
    if rest != expected {
        return Err(error(format!(
            "only {expected:?} may follow the character map"
        )));
    }
    let spaces = Replace::new(ReplacePattern::Regex(SPACES.to_owned()), SPACE.to_string())
        .map_err(|e| error(e.to_string()))?;
    Ok(Sequence::new(vec![
        NormalizerWrapper::Precompiled(charsmap::parse(path, precompiled_charsmap)?),
        NormalizerWrapper::StripNormalizer(Strip::new(false, true)),
        NormalizerWrapper::Replace(spaces),
    ]))
}

#[cfg(test)]
mod tests;
