//! The picture that `xomni generate` shows in a terminal, decoded as the terminal would and
//! compared with the saved file.

use image::{RgbImage, imageops};

use self::emulator::{Emulator, Shown};

mod blocks;
mod emulator;
mod kitty;
mod sixel;

/// Largest mean difference, in levels of 255, between a scaled picture and what shows it.
const ALIKE: f64 = 6.0;

/// Checks that a picture is the saved one, scaled.
fn assert_shows(picture: &RgbImage, saved: &RgbImage) {
    let (width, height) = picture.dimensions();
    let scaled = imageops::resize(saved, width, height, imageops::FilterType::Triangle);
    let pairs = picture.as_raw().iter().zip(scaled.as_raw());
    let sum: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    let mean = sum as f64 / picture.as_raw().len() as f64;
    assert!(mean < ALIKE, "{width}x{height} differs by {mean:.1}");
}

/// The lines after the picture are there.
fn assert_ended(shown: &Shown) {
    for part in ["total", "out.png", "seed 7"] {
        assert!(shown.text().contains(part), "{part}: {:?}", shown.text());
    }
}

#[test]
fn kitty_is_sent_the_file() {
    let shown = Emulator::new()
        .answering("\x1b_Gi=31;OK\x1b\\\x1b[?62;c")
        .generate();
    assert_ended(&shown);
    let picture = kitty::picture(&shown.bytes);
    assert_eq!(picture.png, shown.png);
    // The picture is 64 by 48 pixels and a cell 10 by 20, in a window of 100 by 40.
    assert_eq!((picture.columns, picture.rows), (64, 24));
    assert!(!shown.text().contains(['▄', '▀']));
}

#[test]
fn a_terminal_with_sixel_is_sent_sixel() {
    for attributes in ["\x1b[?63;1;2;4;6;9;15;16;22;28c", "\x1b[?62;4c"] {
        let shown = Emulator::new().answering(attributes).generate();
        assert_ended(&shown);
        let picture = sixel::picture(&shown.bytes);
        assert_eq!(picture.dimensions(), (640, 480));
        assert_shows(&picture, &shown.picture());
        assert!(!shown.text().contains(['▄', '▀']));
    }
}

#[test]
fn other_terminals_show_half_blocks() {
    for attributes in ["\x1b[?64;1;2;6;9;15;16;17;18;21;22;28c", "\x1b[?4c"] {
        let shown = Emulator::new().answering(attributes).generate();
        assert_ended(&shown);
        let picture = blocks::picture(&shown.text());
        assert_eq!(picture.dimensions(), (64, 48));
        assert_shows(&picture, &shown.picture());
    }
}

#[test]
fn a_terminal_that_never_answers_shows_half_blocks() {
    let shown = Emulator::new().generate();
    assert_ended(&shown);
    assert_shows(&blocks::picture(&shown.text()), &shown.picture());
}

#[test]
fn a_dumb_terminal_is_asked_and_shown_nothing() {
    let shown = Emulator::new().of_kind("dumb").generate();
    assert_ended(&shown);
    let codes = ["\x1b_G", "\x1bP", "\x1b[c", "▄"];
    assert!(codes.iter().all(|code| !shown.text().contains(code)));
}
