//! The backbone's tokenizer: Qwen2 byte-level BPE with added tokens for control and for image codes.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::Path,
};

use tokenizers::{
    models::bpe::BPE,
    normalizers::{NFC, NormalizerWrapper},
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    tokenizer::normalizer::SplitDelimiterBehavior,
};

use super::{
    added::{AddedTokens, Span, Spans, item},
    alphabet,
    bpe::BpeParts,
    grid::Grid,
    tokenizer_config::{self, TokenizerConfig},
    tokenizer_file::{
        BpeModel, Merge, Normalizer as NormalizerFile, Pattern, PreTokenizer, TokenizerFile,
    },
};
use crate::{Error, Result, checkpoint::XOmniConfig, files::read_json};

/// Longest text between two control tokens, in bytes.
pub const MAX_TEXT_BYTES: usize = 512 << 10;

const MAX_FILE_BYTES: u64 = 128 << 20;
const MAX_PATTERN_BYTES: usize = 4096;

/// Encodes texts for the backbone and decodes what it writes. Shared freely between threads.
#[derive(Debug)]
pub struct Tokenizer {
    /// Normaliser, pre-tokeniser and model, without any added token.
    plain: tokenizers::Tokenizer,
    added: AddedTokens,
    tokens: HashMap<u32, Token>,
    text_vocab: u32,
    image_vocab: u32,
    marks: [Mark; 3],
    pad: Mark,
    eos: Mark,
}

/// What an id decodes to.
#[derive(Debug)]
struct Token {
    bytes: Box<[u8]>,
    added: bool,
    special: bool,
}

/// A control token that the engine itself writes.
#[derive(Debug)]
struct Mark {
    text: String,
    id: u32,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json` of an X-Omni directory and checks them
    /// against its configuration. [`Error::Io`] and [`Error::Checkpoint`] name the file.
    pub fn open(dir: &Path, config: &XOmniConfig) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let mut file: TokenizerFile<BpeModel> = read_json(&path, MAX_FILE_BYTES)?;
        let limit = |name, value: usize| {
            u32::try_from(value)
                .map_err(|_| Error::checkpoint(&path, name, format!("{value} is out of range")))
        };
        let backbone = &config.backbone;
        let text_vocab = limit("vocab_size", backbone.text_vocab)?;
        let image_vocab = limit("image_vocab_size", backbone.image_vocab)?;
        let all = backbone.text_vocab.saturating_add(backbone.mm_vocab);
        let all = limit("mm_vocab_size", all)?;

        // On equal ids the added token is the one that an id decodes to.
        file.added_tokens.sort_by_key(|token| token.id);
        let added = AddedTokens::new(&path, &file.added_tokens)?;
        let mut tokens = HashMap::with_capacity(file.model.vocab.len() + file.added_tokens.len());
        for token in &file.added_tokens {
            let bytes = alphabet::bytes(&token.content).into();
            let special = token.special;
            let entry = Token {
                bytes,
                added: true,
                special,
            };
            if token.id >= all || tokens.insert(token.id, entry).is_some() {
                let reason = format!("id {} is out of range or taken", token.id);
                return Err(Error::checkpoint(&path, item(&token.content), reason));
            }
        }
        for (content, &id) in &file.model.vocab {
            let error = |reason: String| Err(Error::checkpoint(&path, item(content), reason));
            if id >= text_vocab {
                return error(format!("id {id} is not below vocab_size {text_vocab}"));
            }
            let declared = added.id(content);
            match tokens.entry(id) {
                _ if declared.is_some_and(|declared| declared != id) => {
                    return error(format!("id {id} in the model, {declared:?} as added token"));
                }
                Entry::Occupied(_) if declared.is_none() => {
                    return error(format!("id {id} is also that of an added token"));
                }
                Entry::Occupied(_) => {}
                Entry::Vacant(entry) => {
                    entry.insert(Token {
                        bytes: alphabet::bytes(content).into(),
                        added: false,
                        special: false,
                    });
                }
            }
        }

        let mark = |text: &str| match added.id(text) {
            Some(id) => Ok(Mark {
                text: text.to_owned(),
                id,
            }),
            None => Err(Error::checkpoint(&path, item(text), "not an added token")),
        };
        let [som, eom, image] = &config.mm_special_tokens;
        let marks = [mark(som)?, mark(eom)?, mark(image)?];
        let names = TokenizerConfig::open(dir)?;
        let named = |name, text: Option<&str>| match text {
            Some(text) => mark(text),
            None => Err(Error::checkpoint(
                &dir.join(tokenizer_config::FILE),
                name,
                "missing",
            )),
        };
        let pad = named("pad_token", names.pad_token())?;
        let eos = named("eos_token", names.eos_token())?;
        for code in 0..image_vocab {
            let text = image_token(code);
            let wanted = text_vocab.checked_add(code);
            if added.id(&text) != wanted {
                let reason = format!("has id {:?}, expected {wanted:?}", added.id(&text));
                return Err(Error::checkpoint(&path, item(&text), reason));
            }
        }
        Ok(Self {
            plain: pipeline(&path, file)?,
            added,
            tokens,
            text_vocab,
            image_vocab,
            marks,
            pad,
            eos,
        })
    }

    /// Ids of a document whose control and image tokens are meant as such.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>> {
        let mut spans = Spans::default();
        self.split(text, &mut spans);
        self.encode_spans("prompt", &spans)
    }

    /// Ids of a user's text: control and image tokens written in it are ordinary characters.
    /// [`Error::BadInput`] if the text is longer than [`MAX_TEXT_BYTES`].
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        let mut spans = Spans::default();
        spans.text(text);
        self.encode_spans("prompt", &spans)
    }

    /// Ids that make the backbone draw `prompt` on `grid`: the text, then the grid's announcement.
    pub fn image_prompt(&self, prompt: &str, grid: Grid) -> Result<Vec<u32>> {
        let mut spans = Spans::default();
        spans.text(prompt);
        self.announce(grid, &mut spans);
        self.encode_spans("prompt", &spans)
    }

    /// The unconditional counterpart of [`Tokenizer::image_prompt`]: the announcement alone.
    pub fn negative_prompt(&self, grid: Grid) -> Result<Vec<u32>> {
        self.image_prompt("", grid)
    }

    /// The text of `ids`. Invalid UTF-8 becomes U+FFFD; ids without a token contribute nothing, nor
    /// do special tokens if `skip_special`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let bytes = |&id: &u32| self.token_bytes(id, skip_special).iter().copied();
        let bytes: Vec<u8> = ids.iter().flat_map(bytes).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What an id contributes to a text; see [`Tokenizer::decode`].
    pub(super) fn token_bytes(&self, id: u32, skip_special: bool) -> &[u8] {
        match self.tokens.get(&id) {
            Some(token) if !(skip_special && token.special) => &token.bytes,
            _ => &[],
        }
    }

    /// The id of a token string, as `tokenizer.json` writes it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.added
            .id(token)
            .or_else(|| self.plain.token_to_id(token))
    }

    /// Number of ids that have a token.
    pub fn known_ids(&self) -> usize {
        self.tokens.len()
    }

    /// The id of an image code; `None` beyond the codebook.
    pub fn image_token_id(&self, code: u32) -> Option<u32> {
        (code < self.image_vocab).then(|| self.text_vocab + code)
    }

    /// The image code of an id; `None` if it is none.
    pub fn image_code(&self, id: u32) -> Option<u32> {
        id.checked_sub(self.text_vocab)
            .filter(|&code| code < self.image_vocab)
    }

    /// A picture as it stands in a document, from its announcement to its end token.
    pub fn image_string(&self, grid: Grid, codes: &[u32]) -> String {
        let [som, eom, image] = &self.marks;
        let codes: String = codes.iter().map(|&code| image_token(code)).collect();
        format!("{}{grid}{}{codes}{}", som.text, image.text, eom.text)
    }

    /// Start-of-image token.
    pub fn som(&self) -> u32 {
        self.marks[0].id
    }

    /// End-of-image token.
    pub fn eom(&self) -> u32 {
        self.marks[1].id
    }

    /// The token between grid and image codes.
    pub fn image_marker(&self) -> u32 {
        self.marks[2].id
    }

    /// Padding token.
    pub fn pad(&self) -> u32 {
        self.pad.id
    }

    /// The token that ends a chat turn.
    pub fn eos(&self) -> u32 {
        self.eos.id
    }

    /// Texts of the start-of-image, end-of-image, image and padding tokens.
    pub(super) fn mark_texts(&self) -> [&str; 4] {
        let [som, eom, image] = &self.marks;
        [&som.text, &eom.text, &image.text, &self.pad.text]
    }

    /// Appends trusted text, its added tokens recognised.
    pub(super) fn split(&self, text: &str, spans: &mut Spans) {
        self.added.split(text, spans);
    }

    /// Appends a whole picture; [`Error::BadInput`] unless every cell has a code of the codebook.
    pub(super) fn picture(&self, grid: Grid, codes: &[u32], spans: &mut Spans) -> Result<()> {
        if codes.len() != grid.tokens() {
            let limit = format!("{} codes for a grid of {grid}", grid.tokens());
            return Err(Error::bad_input("image", limit, codes.len()));
        }
        self.announce(grid, spans);
        for &code in codes {
            let id = self.image_token_id(code).ok_or_else(|| {
                Error::bad_input("image", format!("codes below {}", self.image_vocab), code)
            })?;
            spans.token(id);
        }
        spans.token(self.eom());
        Ok(())
    }

    /// Ids of `spans`; errors about them name `field`.
    pub(super) fn encode_spans(&self, field: &'static str, spans: &Spans) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for span in spans.iter() {
            match span {
                Span::Token(id) => ids.push(*id),
                Span::Text(text) => self.encode_plain(field, text, &mut ids)?,
            }
        }
        Ok(ids)
    }

    fn announce(&self, grid: Grid, spans: &mut Spans) {
        spans.token(self.som());
        spans.text(&grid.to_string());
        spans.token(self.image_marker());
    }

    fn encode_plain(&self, field: &'static str, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.len() > MAX_TEXT_BYTES {
            let limit = format!("at most {MAX_TEXT_BYTES} bytes");
            return Err(Error::bad_input(field, limit, text.len()));
        }
        let encoding = self
            .plain
            .encode_fast(text, false)
            .map_err(|e| Error::bad_input(field, format!("encodable text ({e})"), text))?;
        let control = |id: &&u32| self.tokens.get(*id).is_none_or(|token| token.added);
        if let Some(id) = encoding.get_ids().iter().find(control) {
            let limit = "text that encodes to text tokens";
            return Err(Error::bad_input(field, limit, format!("token {id}")));
        }
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

fn image_token(code: u32) -> String {
    format!("<MM-Token-{code}>")
}

/// Optional NFC, one splitting pattern, the byte alphabet, BPE; any other make-up is refused.
fn pipeline(path: &Path, file: TokenizerFile<BpeModel>) -> Result<tokenizers::Tokenizer> {
    let unsupported = |item: &str, what: String| Err(Error::checkpoint(path, item, what));
    let nfc = match &file.normalizer {
        None => false,
        Some(NormalizerFile::Nfc) => true,
        Some(NormalizerFile::Sequence { normalizers }) if *normalizers == [NormalizerFile::Nfc] => {
            true
        }
        Some(_) => return unsupported("normalizer", "only NFC is supported".to_owned()),
    };
    let split = match file.pre_tokenizer.as_ref().and_then(splitting_pattern) {
        Some(pattern) if pattern.len() <= MAX_PATTERN_BYTES => Split::new(
            SplitPattern::Regex(pattern.to_owned()),
            SplitDelimiterBehavior::Isolated,
            false,
        )
        .map_err(|e| Error::checkpoint(path, "pre_tokenizer", e.to_string()))?,
        _ => {
            let supported = "only isolated splits at a pattern, then bytes, are supported";
            return unsupported("pre_tokenizer", supported.to_owned());
        }
    };
    let model = model(path, file.model)?;
    let bytes = ByteLevel::new(false, true, false);
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer
        .with_normalizer(nfc.then_some(NormalizerWrapper::NFC(NFC)))
        .with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Split(split),
            PreTokenizerWrapper::ByteLevel(bytes),
        ])));
    Ok(tokenizer)
}

fn splitting_pattern(pre_tokenizer: &PreTokenizer) -> Option<&str> {
    let PreTokenizer::Sequence { pretokenizers } = pre_tokenizer else {
        return None;
    };
    match pretokenizers.as_slice() {
        [
            PreTokenizer::Split {
                pattern: Pattern::Regex(pattern),
                behavior,
                invert: false,
            },
            PreTokenizer::ByteLevel {
                add_prefix_space: false,
                use_regex: false,
            },
        ] if behavior == "Isolated" => Some(pattern),
        _ => None,
    }
}

fn model(path: &Path, file: BpeModel) -> Result<BPE> {
    if let Some(option) = file.unsupported_option() {
        return Err(Error::checkpoint(path, option, "not supported"));
    }
    let merges: Option<Vec<_>> = file.merges.into_iter().map(Merge::into_pair).collect();
    let merges = merges
        .ok_or_else(|| Error::checkpoint(path, "merges", "a rule that is not a pair of tokens"))?;
    let parts = BpeParts {
        vocab: file.vocab,
        merges,
        end_of_word: "",
    };
    parts.build(path, |builder| builder.ignore_merges(file.ignore_merges))
}

#[cfg(test)]
mod tests;
