//! Half blocks in 24-bit colours: two pixels a cell.

use image::{Rgb, RgbImage};

/// The picture in the lines that have half blocks.
pub fn picture(text: &str) -> RgbImage {
    let lines = text.lines().filter(|line| line.contains(['▄', '▀']));
    let rows: Vec<[Vec<Rgb<u8>>; 2]> = lines.map(row).collect();
    let width = rows.first().expect("half blocks")[0].len() as u32;
    let pixels: Vec<Rgb<u8>> = rows.into_iter().flatten().flatten().collect();
    let height = pixels.len() as u32 / width;
    let bytes = pixels.iter().flat_map(|pixel| pixel.0).collect();
    RgbImage::from_raw(width, height, bytes).expect("lines of one length")
}

/// The upper and lower pixels of a line.
fn row(line: &str) -> [Vec<Rgb<u8>>; 2] {
    let (mut front, mut back) = (Rgb([0; 3]), Rgb([0; 3]));
    let mut pixels = [vec![], vec![]];
    let mut codes = line.split("\x1b[");
    codes.next();
    for code in codes {
        let Some((numbers, text)) = code.split_once('m') else {
            continue;
        };
        let numbers: Vec<u8> = numbers.split(';').flat_map(str::parse).collect();
        match *numbers {
            [38, 2, red, green, blue] => front = Rgb([red, green, blue]),
            [48, 2, red, green, blue] => back = Rgb([red, green, blue]),
            _ => {}
        }
        for block in text.chars() {
            match block {
                '▄' => (pixels[0].push(back), pixels[1].push(front)),
                '▀' => (pixels[0].push(front), pixels[1].push(back)),
                _ => continue,
            };
        }
    }
    pixels
}
