//! `generation_config.json`, applied as the published script applies it.

use std::{fmt, path::Path};

use serde_json::Value;

use super::{
    XOmniConfig,
    config::token_ids,
    fields::{self, Fields},
};
use crate::{Error, Result, sampling::SamplingParams};

/// Sampling defaults of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// Temperature; 1 in the published script.
    pub temperature: f32,
    /// Candidates kept by score; 0 keeps all; 50 in the published script.
    pub top_k: usize,
    /// Nucleus mass; 1 in the published script.
    pub top_p: f32,
    /// Smallest kept probability relative to the largest; 0 keeps all; 0.03 in the published script.
    pub min_p: f32,
    /// Ids that end a text answer.
    pub stop_ids: Vec<u32>,
}

/// Largest score filter that makes sense: more candidates than any vocabulary has.
const MAX_TOP_K: usize = 1 << 24;

/// Fields that change the drawn tokens and that this engine has no processor for, with the value
/// that switches each of them off. Null switches off all of them.
const UNSUPPORTED: &[(&str, Off)] = &[
    ("bad_words_ids", Off::Empty),
    ("begin_suppress_tokens", Off::Empty),
    ("constraints", Off::Empty),
    ("diversity_penalty", Off::Number(0.0)),
    ("dola_layers", Off::Empty),
    ("encoder_no_repeat_ngram_size", Off::Number(0.0)),
    ("encoder_repetition_penalty", Off::Number(1.0)),
    ("epsilon_cutoff", Off::Number(0.0)),
    ("eta_cutoff", Off::Number(0.0)),
    ("exponential_decay_length_penalty", Off::Empty),
    ("force_words_ids", Off::Empty),
    ("forced_bos_token_id", Off::Empty),
    ("forced_decoder_ids", Off::Empty),
    ("forced_eos_token_id", Off::Empty),
    ("guidance_scale", Off::Number(1.0)),
    ("max_time", Off::Empty),
    ("min_length", Off::Number(0.0)),
    ("min_new_tokens", Off::Number(0.0)),
    ("no_repeat_ngram_size", Off::Number(0.0)),
    ("num_beam_groups", Off::Number(1.0)),
    ("num_beams", Off::Number(1.0)),
    ("num_return_sequences", Off::Number(1.0)),
    ("penalty_alpha", Off::Number(0.0)),
    ("remove_invalid_values", Off::False),
    ("renormalize_logits", Off::False),
    ("repetition_penalty", Off::Number(1.0)),
    ("sequence_bias", Off::Empty),
    ("stop_strings", Off::Empty),
    ("suppress_tokens", Off::Empty),
    ("token_healing", Off::False),
    ("top_h", Off::Empty),
    ("typical_p", Off::Number(1.0)),
    ("watermarking_config", Off::Empty),
];

/// The value of a field with which it has no effect.
enum Off {
    Number(f64),
    False,
    Empty,
}

impl Off {
    fn matches(&self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Self::Number(off), value) => value.as_f64() == Some(*off),
            (Self::False, value) => value == &Value::Bool(false),
            (Self::Empty, Value::Array(list)) => list.is_empty(),
            (Self::Empty, Value::Object(map)) => map.is_empty(),
            (Self::Empty, _) => false,
        }
    }
}

impl fmt::Display for Off {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(off) => write!(f, "{off} (no other value is implemented)"),
            Self::False => f.write_str("false (true is not implemented)"),
            Self::Empty => f.write_str("null (the setting is not implemented)"),
        }
    }
}

impl GenerationConfig {
    /// The effective settings of the published script, which passes `min_p` and leaves the rest at
    /// the library's defaults.
    fn published(stop_ids: Vec<u32>) -> Self {
        Self {
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.03,
            stop_ids,
        }
    }

    /// These defaults, unguided.
    pub fn sampling(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            guidance_scale: 1.0,
        }
    }

    /// Refuses what a request could not ask for either.
    fn check(&self, root: &Fields<'_>) -> Result<()> {
        match self.sampling().validate() {
            Err(Error::BadInput {
                field,
                limit,
                value,
            }) => Err(root.refuse(field, limit, value)),
            other => other,
        }
    }

    /// Reads `generation_config.json` in `dir`, if there is one.
    ///
    /// As transformers does, values of the file replace only those that the script leaves at the
    /// library's defaults, and only if the file's `transformers_version` is at least 4.50.0 (or
    /// absent); of an older file only the stop ids count.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Checkpoint`] naming the first field that
    /// is out of range or asks for a processor that is not implemented.
    pub fn open(dir: &Path, config: &XOmniConfig) -> Result<Self> {
        let file = dir.join("generation_config.json");
        match fields::read_optional(&file)? {
            Some(text) => Self::parse(&text, &file, config),
            None => Ok(Self::published(config.eos_token_ids.clone())),
        }
    }

    /// Parses the text of `generation_config.json`; `file` is named in errors.
    ///
    /// # Errors
    /// As [`GenerationConfig::open`].
    pub fn parse(text: &str, file: &Path, config: &XOmniConfig) -> Result<Self> {
        let map = fields::parse_object(text, file)?;
        let root = Fields::new(&map, file);
        let vocab = config.backbone.text_vocab + config.backbone.mm_vocab;
        let stop_ids = token_ids(&root, vocab)?.unwrap_or_else(|| config.eos_token_ids.clone());
        let mut effective = Self::published(stop_ids);
        if !replaces_defaults(&root)? {
            return Ok(effective);
        }
        if root
            .get("temperature")
            .is_some_and(|value| !value.is_null())
        {
            effective.temperature = root.number("temperature", f64::MIN..=f64::MAX)? as f32;
        }
        match root.get("top_k") {
            None => {}
            Some(Value::Null) => effective.top_k = 0,
            Some(_) => effective.top_k = root.size("top_k", 0..=MAX_TOP_K)?,
        }
        if root.get("top_p").is_some_and(|value| !value.is_null()) {
            effective.top_p = root.number("top_p", f64::MIN..=f64::MAX)? as f32;
        }
        effective.check(&root)?;
        for (name, off) in UNSUPPORTED {
            if let Some(value) = root.get(name).filter(|value| !off.matches(value)) {
                return Err(root.refuse(name, off, value));
            }
        }
        Ok(effective)
    }
}

/// Whether the file is of a version whose values replace the library's defaults. As in
/// transformers, only the release number counts: `4.50.0.dev0` is 4.50.0.
fn replaces_defaults(root: &Fields<'_>) -> Result<bool> {
    const NAME: &str = "transformers_version";
    if root.get(NAME).is_none_or(Value::is_null) {
        return Ok(true);
    }
    let version = root.text(NAME)?;
    let mut release = version
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    let major = release
        .next()
        .ok_or_else(|| root.refuse(NAME, "a version number", version))?;
    Ok((major, release.next().unwrap_or(0)) >= (4, 50))
}

#[cfg(test)]
mod tests;
