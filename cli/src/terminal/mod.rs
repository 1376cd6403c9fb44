//! Pictures in the terminal: with kitty's protocol, as sixel, with iTerm's protocol, or as half blocks.

use std::io::{IsTerminal, Write};

use image::DynamicImage;
use rustix::termios::tcgetwinsize;

use self::probe::Abilities;

mod kitty;
mod probe;
mod sixel;

/// Columns that a picture takes at most.
const COLUMNS: u32 = 64;
/// Lines that stay free for what is printed after a picture, in a window of twice as many.
const FREE: u32 = 10;
/// Pixels of a cell where the terminal does not tell: those of a VT340.
const CELL: (u32, u32) = (10, 20);

/// Standard output as a place for pictures.
#[derive(Debug)]
pub struct Terminal {
    abilities: Abilities,
    /// Columns and rows.
    cells: (u32, u32),
    /// Width and height of a cell in pixels.
    cell: (u32, u32),
}

impl Terminal {
    /// Standard output, if that is a terminal; asks what it can show, for a second at most.
    pub fn of_stdout() -> Option<Self> {
        let stdout = std::io::stdout();
        if !stdout.is_terminal() || std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
            return None;
        }
        let size = tcgetwinsize(&stdout).ok()?;
        let or = |value: u16, other: u32| if value == 0 { other } else { value.into() };
        let cells = (or(size.ws_col, 80), or(size.ws_row, 24));
        let pixels = (u32::from(size.ws_xpixel), u32::from(size.ws_ypixel));
        let cell = (pixels.0 / cells.0, pixels.1 / cells.1);
        Some(Self {
            abilities: probe::ask(),
            cells,
            cell: if cell.0 == 0 || cell.1 == 0 {
                CELL
            } else {
                cell
            },
        })
    }

    /// Shows a PNG and goes to the next line. A picture that cannot be shown is left out: it is
    /// saved all the same.
    pub fn show(&self, png: &[u8]) {
        let Ok(picture) = image::load_from_memory(png) else {
            return;
        };
        let cells = self.fit(&picture);
        let codes = if self.abilities.kitty {
            Some(kitty::codes(png, cells))
        } else if self.abilities.sixel {
            sixel::codes(&picture, (cells.0 * self.cell.0, cells.1 * self.cell.1))
        } else {
            None
        };
        let mut stdout = std::io::stdout().lock();
        if let Some(codes) = codes {
            let _ = writeln!(stdout, "{codes}");
            let _ = stdout.flush();
            return;
        }
        // Told by the environment that it shows iTerm's protocol, or half blocks; asks nothing.
        let config = viuer::Config {
            absolute_offset: false,
            width: Some(cells.0),
            height: Some(cells.1),
            use_kitty: false,
            ..viuer::Config::default()
        };
        drop(stdout);
        let _ = viuer::print(&picture, &config);
    }

    /// Columns and rows that a picture takes, whole and undistorted.
    fn fit(&self, picture: &DynamicImage) -> (u32, u32) {
        let columns = self.cells.0.min(COLUMNS).min(picture.width());
        let rows = self.cells.1.saturating_sub(FREE);
        let rows = rows.max(self.cells.1 / 2).max(1);
        let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
        let (cell_width, cell_height) = (f64::from(self.cell.0), f64::from(self.cell.1));
        let by_width = f64::from(columns) * cell_width / width;
        let scale = by_width.min(f64::from(rows) * cell_height / height);
        let cells = |length: f64| length.round().max(1.0) as u32;
        (
            cells(width * scale / cell_width),
            cells(height * scale / cell_height),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(cells: (u32, u32), cell: (u32, u32), picture: (u32, u32)) -> (u32, u32) {
        let terminal = Terminal {
            abilities: Abilities::default(),
            cells,
            cell,
        };
        terminal.fit(&DynamicImage::new_rgb8(picture.0, picture.1))
    }

    #[test]
    fn pictures_fit_the_window() {
        assert_eq!(fitted((100, 50), CELL, (128, 128)), (64, 32));
        assert_eq!(fitted((80, 24), CELL, (128, 128)), (28, 14));
        assert_eq!(fitted((80, 24), CELL, (192, 128)), (42, 14));
        assert_eq!(fitted((30, 60), CELL, (128, 192)), (30, 23));
        assert_eq!(fitted((100, 50), (10, 10), (128, 128)), (40, 40));
        assert_eq!(fitted((100, 50), CELL, (16, 16)), (16, 8));
        assert_eq!(fitted((80, 12), CELL, (128, 128)), (12, 6));
        assert_eq!(fitted((1, 1), CELL, (2048, 16)), (1, 1));
    }
}
