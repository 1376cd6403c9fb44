//! Documents of texts and pictures: writing them as ids, and reading them back.
//!
//! The grammar is that of the reference implementation's `mmencode` and `mmdecode`, including what
//! it ignores silently. Reading only parses: whether a picture can be decoded is asked separately.

use super::{added::Spans, grid::Grid, tokenizer::Tokenizer};
use crate::{Error, Result};

const SEPARATOR: &str = "<SEP>";
const IMAGE_TOKEN: &str = "<MM-Token-";

/// What a document says.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The text before each picture, and the one after the last; empty ones included.
    pub texts: Vec<String>,
    /// The pictures, in order.
    pub images: Vec<ImageCall>,
}

/// A picture as the document asks for it; numbers beyond `i64` are held at its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageCall {
    /// Rows, as written.
    pub height: i64,
    /// Columns, as written.
    pub width: i64,
    /// Image codes, as written; at most `height * width`.
    pub tokens: Vec<i64>,
    /// The decoder's prompt: the last text so far, or what the caller forced.
    pub prompt: String,
    /// How many texts the decoder is given: all so far, or the forced one.
    pub texts_before: usize,
    /// How many pictures come before.
    pub images_before: usize,
}

impl Document {
    /// Parses what [`Tokenizer::decode`] made of a document (special tokens kept). The n-th element
    /// of `forced` replaces the texts that the n-th picture is drawn from.
    /// [`Error::BadInput`] for what the grammar refuses.
    pub fn parse(tokenizer: &Tokenizer, text: &str, forced: &[String]) -> Result<Self> {
        let [som, eom, image, pad] = tokenizer.mark_texts();
        let text = text.replace(pad, "").replace(SEPARATOR, "");
        let mut document = Self {
            texts: Vec::new(),
            images: Vec::new(),
        };
        for chunk in text.split(eom) {
            let (text, picture) = halves(chunk, som)?.unwrap_or((chunk, ""));
            document.texts.push(text.to_owned());
            if let Some((grid, tokens)) = halves(picture, image)? {
                let images_before = document.images.len();
                let (prompt, texts_before) = match forced.get(images_before) {
                    Some(prompt) => (prompt.clone(), 1),
                    None => (text.to_owned(), document.texts.len()),
                };
                let (height, width) = parse_grid(grid)?;
                document.images.push(ImageCall {
                    height,
                    width,
                    tokens: parse_tokens(tokens, height, width)?,
                    prompt,
                    texts_before,
                    images_before,
                });
            }
        }
        Ok(document)
    }

    /// Decodes and parses ids, of which there must be some.
    pub fn decode(tokenizer: &Tokenizer, ids: &[u32], forced: &[String]) -> Result<Self> {
        if ids.is_empty() {
            return Err(Error::bad_input("document", "at least one token", 0));
        }
        Self::parse(tokenizer, &tokenizer.decode(ids, false), forced)
    }

    /// Ids of texts and pictures in turn, a text first; when one list ends the other goes on.
    /// [`Error::BadInput`] for pictures whose codes do not fit their grid or the codebook.
    pub fn encode(
        tokenizer: &Tokenizer,
        texts: &[&str],
        pictures: &[(Grid, &[u32])],
    ) -> Result<Vec<u32>> {
        let mut spans = Spans::default();
        for index in 0..texts.len().max(pictures.len()) {
            if let Some(text) = texts.get(index) {
                spans.text(text);
            }
            if let Some((grid, codes)) = pictures.get(index) {
                tokenizer.picture(*grid, codes, &mut spans)?;
            }
        }
        tokenizer.encode_spans("document", &spans)
    }
}

impl ImageCall {
    /// Whether the picture is drawn from exactly one text, and is the first.
    pub fn is_single(&self) -> bool {
        self.texts_before == 1 && self.images_before == 0
    }

    /// Whether there is one token for each cell.
    pub fn is_complete(&self) -> bool {
        let cells = i128::from(self.height) * i128::from(self.width);
        self.tokens.len() as i128 == cells
    }

    /// Whether every token is in a codebook of `codes` entries.
    pub fn is_within(&self, codes: usize) -> bool {
        let in_range = |&token: &i64| usize::try_from(token).is_ok_and(|token| token < codes);
        self.tokens.iter().all(in_range)
    }

    /// Grid and codes for a decoder with a codebook of `codes` entries; [`Error::BadInput`] if it
    /// could not draw the picture.
    pub fn check(&self, codes: usize) -> Result<(Grid, Vec<u32>)> {
        let refuse = |limit: String, value: String| Err(Error::bad_input("document", limit, value));
        if !self.is_single() {
            let value = format!(
                "{} texts and {} pictures",
                self.texts_before, self.images_before
            );
            return refuse("one text and no picture before a picture".into(), value);
        }
        let side = |side: i64| u32::try_from(side).ok().filter(|&side| side > 0);
        let (Some(height), Some(width)) = (side(self.height), side(self.width)) else {
            let value = format!("{} {}", self.height, self.width);
            return refuse("a grid of positive sides".into(), value);
        };
        if !self.is_complete() {
            let limit = format!("one token for each cell of {height} {width}");
            return refuse(limit, self.tokens.len().to_string());
        }
        let code = |&token: &i64| u32::try_from(token).ok().filter(|&t| (t as usize) < codes);
        match self.tokens.iter().map(code).collect() {
            Some(tokens) => Ok((Grid::new(height, width), tokens)),
            None => refuse(format!("codes below {codes}"), "a larger one".into()),
        }
    }
}

/// What stands before and after `mark`; `None` if it is absent, an error if it is there twice.
fn halves<'a>(text: &'a str, mark: &str) -> Result<Option<(&'a str, &'a str)>> {
    match text.split_once(mark) {
        Some((_, after)) if after.contains(mark) => {
            let limit = format!("one {mark} for each picture");
            Err(Error::bad_input("document", limit, text))
        }
        halves => Ok(halves),
    }
}

fn parse_grid(text: &str) -> Result<(i64, i64)> {
    let error = || Error::bad_input("document", "a grid of two numbers, as in 72 72", text);
    let (height, width) = text.split_once(' ').ok_or_else(error)?;
    if width.contains(' ') {
        return Err(error());
    }
    python_int(height).zip(python_int(width)).ok_or_else(error)
}

/// The first `height * width` tokens; text between them and further tokens are ignored.
fn parse_tokens(text: &str, height: i64, width: i64) -> Result<Vec<i64>> {
    let written = text.matches(IMAGE_TOKEN).count();
    let cells = i128::from(height) * i128::from(width);
    // A Python slice: a negative bound counts from the end.
    let bound = if cells < 0 {
        written as i128 + cells
    } else {
        cells
    };
    let wanted = usize::try_from(bound.clamp(0, written as i128)).unwrap_or(0);
    text.split(IMAGE_TOKEN)
        .skip(1)
        .take(wanted)
        .map(|part| {
            let number = part.split('>').next().unwrap_or_default();
            python_int(number)
                .ok_or_else(|| Error::bad_input("document", "a number in every image token", part))
        })
        .collect()
}

/// Python's `int()` on a string of ASCII digits: white space around it, a sign and single
/// underscores between digits are fine. Saturates.
fn python_int(text: &str) -> Option<i64> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let mut value = 0i64;
    for group in digits.split('_') {
        if group.is_empty() {
            return None;
        }
        for digit in group.chars() {
            let digit = i64::from(digit.to_digit(10)?);
            value = value.saturating_mul(10).saturating_add(digit);
        }
    }
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests;
