//! What synthetic workers draw: pictures that follow from their seed, in frames at a steady rate.

use std::{ops::Range, time::Duration};

use xomni_engine::{
    Error, Result,
    picture::{Picture, png, read},
    text::Grid,
};

use crate::bench::mix::mix;

/// The pictures of a run.
#[derive(Debug, Clone, Copy)]
pub struct Drawing {
    /// Size in tokens.
    pub grid: Grid,
    /// Codes in the codebook.
    pub codebook: u32,
    /// Frames that its tokens come in, 1 to as many as there are.
    pub frames: usize,
    /// From one frame to the next.
    pub period: Duration,
}

impl Drawing {
    /// The image code at a position of the picture of `seed`.
    pub fn code(&self, seed: u64, position: usize) -> u32 {
        let bits = mix(seed.rotate_left(32) ^ position as u64);
        (bits % u64::from(self.codebook)) as u32
    }

    /// Positions of the tokens of a frame.
    pub fn positions(&self, frame: usize) -> Range<usize> {
        self.tokens_before(frame)..self.tokens_before(frame + 1)
    }

    /// Frames that have come once there are this many tokens.
    pub fn frames_of(&self, tokens: usize) -> usize {
        // The last frame that begins at or before so many tokens.
        ((tokens + 1) * self.frames).div_ceil(self.grid.tokens()) - 1
    }

    fn tokens_before(&self, frame: usize) -> usize {
        frame * self.grid.tokens() / self.frames
    }

    /// The picture that these codes stand for: a pixel each.
    ///
    /// # Errors
    /// As [`png::encode`].
    pub fn develop(&self, codes: &[u32]) -> Result<Vec<u8>> {
        let pixel = |code: &u32| [*code as u8, (code >> 8) as u8, 0];
        png::encode(&Picture {
            width: self.grid.width as usize,
            height: self.grid.height as usize,
            rgb: codes.iter().flat_map(pixel).collect(),
        })
    }

    /// Checks that `bytes` is the picture of `seed`.
    ///
    /// # Errors
    /// [`Error::BadInput`] if it is another.
    pub fn check(&self, seed: u64, bytes: &[u8]) -> Result<()> {
        let codes: Vec<u32> = (0..self.grid.tokens())
            .map(|position| self.code(seed, position))
            .collect();
        let expected = read::read(&self.develop(&codes)?)?;
        if read::read(bytes)? == expected {
            return Ok(());
        }
        let reason = "must be the picture of its seed";
        Err(Error::bad_input("picture", reason, seed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawing(side: u32, frames: usize) -> Drawing {
        Drawing {
            grid: Grid::new(side, side),
            codebook: 256,
            frames,
            period: Duration::ZERO,
        }
    }

    #[test]
    fn frames_hold_every_token_once_and_are_counted_back() {
        for (side, frames) in [(1, 1), (4, 16), (4, 5), (64, 400), (7, 48)] {
            let drawing = drawing(side, frames);
            let mut next = 0;
            for frame in 0..frames {
                let positions = drawing.positions(frame);
                assert_eq!(positions.start, next);
                assert!(!positions.is_empty());
                next = positions.end;
                assert_eq!(drawing.frames_of(next), frame + 1, "{drawing:?}");
            }
            assert_eq!(next, drawing.grid.tokens());
        }
    }

    #[test]
    fn a_picture_is_that_of_its_seed_alone() {
        let drawing = drawing(8, 4);
        let codes: Vec<u32> = (0..64).map(|position| drawing.code(5, position)).collect();
        let picture = drawing.develop(&codes).expect("a picture");
        assert!(drawing.check(5, &picture).is_ok());
        assert!(drawing.check(6, &picture).is_err());
        assert!(drawing.check(5, &picture[..40]).is_err());
    }
}
