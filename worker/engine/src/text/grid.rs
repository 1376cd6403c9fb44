//! The size of a picture in tokens.

use std::fmt;

/// Rows and columns of image tokens; row-major, one token a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl Grid {
    /// A grid of `height` rows and `width` columns.
    pub fn new(height: u32, width: u32) -> Self {
        Self { height, width }
    }

    /// Number of tokens; saturates where `usize` is too small.
    pub fn tokens(self) -> usize {
        usize::try_from(u64::from(self.height) * u64::from(self.width)).unwrap_or(usize::MAX)
    }
}

/// `{height} {width}`, as it stands between the start-of-image and the image token.
impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.height, self.width)
    }
}
