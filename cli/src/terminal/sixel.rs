//! Sixel graphics.

use icy_sixel::{
    DiffusionMethod, MethodForLargest, MethodForRep, PixelFormat, Quality, sixel_string,
};
use image::{DynamicImage, imageops::FilterType};

/// Longest side that xterm shows unless it is told otherwise.
const LONGEST: u32 = 1000;

/// What shows a picture in a box of so many pixels from the cursor, undistorted.
pub fn codes(picture: &DynamicImage, (width, height): (u32, u32)) -> Option<String> {
    let (width, height) = (width.min(LONGEST), height.min(LONGEST));
    let shown = picture.resize(width, height, FilterType::Triangle);
    let (width, height) = (shown.width(), shown.height());
    let codes = sixel_string(
        &shown.into_rgb8(),
        i32::try_from(width).ok()?,
        i32::try_from(height).ok()?,
        PixelFormat::RGB888,
        DiffusionMethod::Auto,
        MethodForLargest::Auto,
        MethodForRep::Auto,
        Quality::AUTO,
    );
    codes.ok()
}
