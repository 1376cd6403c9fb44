//! Sixel graphics, read as a terminal does.

use image::{Rgb, RgbImage};

/// Rows of pixels in a band.
const BAND: u32 = 6;

/// The one picture that is shown.
pub fn picture(bytes: &[u8]) -> RgbImage {
    let text = String::from_utf8_lossy(bytes);
    let mut sequences = text.split("\x1bP").skip(1);
    let sequence = sequences.next().expect("a sixel picture");
    assert!(sequences.next().is_none(), "one picture");
    let (sequence, _) = sequence.split_once("\x1b\\").expect("an end");
    let (_, body) = sequence.split_once('q').expect("a sixel picture");
    Reader::default().read(body)
}

#[derive(Debug, Default)]
struct Reader {
    palette: Vec<Rgb<u8>>,
    picture: RgbImage,
    color: usize,
    x: u32,
    y: u32,
}

impl Reader {
    fn read(mut self, body: &str) -> RgbImage {
        let mut rest = body;
        while let Some(command) = rest.chars().next() {
            rest = &rest[command.len_utf8()..];
            let end = rest.find(|c: char| !(c.is_ascii_digit() || c == ';'));
            let (digits, after) = rest.split_at(end.unwrap_or(rest.len()));
            let numbers: Vec<u32> = digits.split(';').flat_map(str::parse).collect();
            match command {
                '"' => self.picture = RgbImage::new(numbers[2], numbers[3]),
                '#' => self.color(&numbers),
                '$' => self.x = 0,
                '-' => (self.x, self.y) = (0, self.y + BAND),
                '!' => {
                    let sixel = after.chars().next().expect("a repeated sixel");
                    self.draw(sixel, numbers[0]);
                    rest = &after[1..];
                    continue;
                }
                '?'..='~' => self.draw(command, 1),
                '\r' | '\n' => {}
                other => panic!("{other:?} in a sixel picture"),
            }
            rest = after;
        }
        self.picture
    }

    /// Chooses a colour, and sets it where its components in percent are told.
    fn color(&mut self, numbers: &[u32]) {
        self.color = numbers[0] as usize;
        if let [_, system, red, green, blue] = *numbers {
            assert_eq!(system, 2, "RGB");
            let level = |percent: u32| ((percent * 255 + 50) / 100) as u8;
            let known = self.palette.len().max(self.color + 1);
            self.palette.resize(known, Rgb([0; 3]));
            self.palette[self.color] = Rgb([level(red), level(green), level(blue)]);
        }
    }

    /// Six pixels, one below the other, `count` times to the right.
    fn draw(&mut self, sixel: char, count: u32) {
        let bits = sixel as u32 - '?' as u32;
        for x in self.x..self.x + count {
            for row in (0..BAND).filter(|row| bits >> row & 1 == 1) {
                self.picture
                    .put_pixel(x, self.y + row, self.palette[self.color]);
            }
        }
        self.x += count;
    }
}
