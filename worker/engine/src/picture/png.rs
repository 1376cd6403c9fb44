//! PNG output.

use image::{
    ExtendedColorType, ImageEncoder,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};

use super::Picture;
use crate::{Error, Result};

/// The picture as an RGB PNG; equal pictures give equal bytes.
///
/// # Errors
/// [`Error::BadInput`] if the picture is empty, longer than a PNG can be, or its bytes do not fill
/// its sides.
pub fn encode(picture: &Picture) -> Result<Vec<u8>> {
    let refused = |reason: &str| {
        let sides = format!("{} x {}", picture.width, picture.height);
        Error::bad_input("image", reason, sides)
    };
    let (Ok(width), Ok(height)) = (picture.width.try_into(), picture.height.try_into()) else {
        return Err(refused("sides must fit 32 bits"));
    };
    if picture
        .width
        .saturating_mul(picture.height)
        .saturating_mul(3)
        != picture.rgb.len()
    {
        return Err(refused("pixels must fill the sides"));
    }
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, FilterType::Adaptive)
        .write_image(&picture.rgb, width, height, ExtendedColorType::Rgb8)
        .map_err(|error| refused(&error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::read;

    #[test]
    fn round_trips_and_repeats() {
        let rgb = (0..5 * 7 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let picture = Picture {
            width: 5,
            height: 7,
            rgb,
        };
        let bytes = encode(&picture).unwrap();
        assert_eq!(read::read(&bytes).unwrap(), picture);
        assert_eq!(encode(&picture).unwrap(), bytes);
    }

    #[test]
    fn refuses_a_picture_that_does_not_fill_its_sides() {
        let picture = Picture {
            width: 2,
            height: 2,
            rgb: vec![0; 11],
        };
        assert!(matches!(encode(&picture), Err(Error::BadInput { .. })));
    }
}
