//! What a decoding is asked to do, and what it tells while it runs.

use crate::{Error, Result, text::grid::Grid};

/// Most denoising steps of a picture.
pub const MAX_STEPS: usize = 1000;

/// One picture to decode. Equal specs give equal pictures on equal devices.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeSpec {
    /// The text before the picture; may be empty.
    pub prompt: String,
    /// The picture's size in tokens.
    pub grid: Grid,
    /// Image codes, row by row, `grid.tokens()` of them.
    pub tokens: Vec<u32>,
    /// Seed of the initial noise.
    pub seed: u64,
    /// Index of the picture within its request.
    pub image_index: u32,
    /// Denoising steps, 1 to [`MAX_STEPS`]; the checkpoint's number if `None`.
    pub steps: Option<usize>,
}

impl DecodeSpec {
    /// Refuses a spec that does not fit itself or a codebook of `codes` codes.
    ///
    /// # Errors
    /// [`Error::BadInput`] naming the field, its limit and the value.
    pub fn check(&self, codes: usize) -> Result<()> {
        let Grid { height, width } = self.grid;
        if height == 0 || width == 0 {
            let given = format!("{height} x {width}");
            return Err(Error::bad_input(
                "grid",
                "sides of at least one token",
                given,
            ));
        }
        if self.tokens.len() != self.grid.tokens() {
            let limit = format!("{height} x {width} tokens");
            return Err(Error::bad_input("tokens", limit, self.tokens.len()));
        }
        if let Some(code) = self.tokens.iter().find(|code| **code as usize >= codes) {
            return Err(Error::bad_input(
                "tokens",
                format!("codes below {codes}"),
                code,
            ));
        }
        match self.steps {
            Some(steps) if !(1..=MAX_STEPS).contains(&steps) => {
                let limit = format!("1 to {MAX_STEPS}");
                Err(Error::bad_input("num_inference_steps", limit, steps))
            }
            _ => Ok(()),
        }
    }
}

/// The part of a decoding that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Encoding of the prompt and the tokens.
    Encode,
    /// A denoising step.
    Denoise {
        /// The step, from 0.
        step: usize,
        /// Steps of the picture.
        of: usize,
    },
    /// Latents to pixels.
    Vae,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> DecodeSpec {
        DecodeSpec {
            prompt: String::new(),
            grid: Grid::new(2, 3),
            tokens: vec![0, 1, 2, 3, 4, 5],
            seed: 0,
            image_index: 0,
            steps: None,
        }
    }

    #[test]
    fn limits_are_named() {
        assert!(spec().check(6).is_ok());
        let refusal = |spec: DecodeSpec| spec.check(6).unwrap_err().to_string();
        let large = DecodeSpec {
            tokens: vec![0, 1, 2, 3, 4, 6],
            ..spec()
        };
        assert_eq!(refusal(large), "tokens: codes below 6, got 6");
        let short = DecodeSpec {
            tokens: vec![0],
            ..spec()
        };
        assert_eq!(refusal(short), "tokens: 2 x 3 tokens, got 1");
        let empty = DecodeSpec {
            tokens: vec![],
            grid: Grid::new(0, 7),
            ..spec()
        };
        assert_eq!(
            refusal(empty),
            "grid: sides of at least one token, got 0 x 7"
        );
        for steps in [0, 1001] {
            let steps = DecodeSpec {
                steps: Some(steps),
                ..spec()
            };
            assert!(refusal(steps).starts_with("num_inference_steps: 1 to 1000"));
        }
    }
}
