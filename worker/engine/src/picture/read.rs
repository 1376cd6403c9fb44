//! PNG and JPEG input from untrusted bytes.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::Picture;
use crate::{Error, Result};

/// Most pixels of an input picture.
pub const MAX_PIXELS: u64 = 50_000_000;

/// Most memory that what a file holds besides its pixels may take, such as colour profiles, which
/// are stored compressed. The pixels' own is bounded by their number.
const MAX_DECODER_BYTES: u64 = 16 << 20;

/// A picture whose header has been read and found within [`MAX_PIXELS`].
pub struct Opened<'a> {
    decoder: Box<dyn ImageDecoder + 'a>,
}

/// Reads the header of a PNG or JPEG.
///
/// # Errors
/// [`Error::BadInput`] if `bytes` are neither, damaged, or too large a picture.
pub fn open(bytes: &[u8]) -> Result<Opened<'_>> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(unreadable)?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        return Err(unreadable("unknown format"));
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let limit = format!("at most {MAX_PIXELS} pixels");
        return Err(Error::bad_input(
            "image",
            limit,
            format!("{width} x {height}"),
        ));
    }
    Ok(Opened {
        decoder: Box::new(decoder),
    })
}

/// [`open`], then [`Opened::read`].
///
/// # Errors
/// As both.
pub fn read(bytes: &[u8]) -> Result<Picture> {
    open(bytes)?.read()
}

impl Opened<'_> {
    /// Width and height in pixels.
    pub fn size(&self) -> (usize, usize) {
        let (width, height) = self.decoder.dimensions();
        (width as usize, height as usize)
    }

    /// Decodes the pixels as RGB the way Pillow's `convert("RGB")` does: alpha is dropped, grey
    /// replicated, palettes are looked up, of 16-bit channels the upper byte is taken. EXIF
    /// orientation is not applied.
    ///
    /// # Errors
    /// [`Error::BadInput`] if the picture is damaged.
    pub fn read(self) -> Result<Picture> {
        let (width, height) = self.size();
        let pixels = DynamicImage::from_decoder(self.decoder).map_err(unreadable)?;
        let rgb = match pixels {
            DynamicImage::ImageRgb8(pixels) => pixels.into_raw(),
            DynamicImage::ImageRgba8(pixels) => {
                pixels.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect()
            }
            DynamicImage::ImageLuma8(pixels) => pixels.pixels().flat_map(|p| [p[0]; 3]).collect(),
            DynamicImage::ImageLumaA8(pixels) => pixels.pixels().flat_map(|p| [p[0]; 3]).collect(),
            DynamicImage::ImageRgb16(pixels) => pixels
                .pixels()
                .flat_map(|p| [p[0], p[1], p[2]].map(upper))
                .collect(),
            DynamicImage::ImageRgba16(pixels) => pixels
                .pixels()
                .flat_map(|p| [p[0], p[1], p[2]].map(upper))
                .collect(),
            DynamicImage::ImageLuma16(pixels) => {
                pixels.pixels().flat_map(|p| [upper(p[0]); 3]).collect()
            }
            DynamicImage::ImageLumaA16(pixels) => {
                pixels.pixels().flat_map(|p| [upper(p[0]); 3]).collect()
            }
            other => return Err(unreadable(format!("colour type {:?}", other.color()))),
        };
        Ok(Picture { width, height, rgb })
    }
}

fn upper(value: u16) -> u8 {
    (value >> 8) as u8
}

fn unreadable(reason: impl ToString) -> Error {
    Error::bad_input("image", "must be a readable PNG or JPEG", reason)
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
    use proptest::prelude::*;

    use super::*;

    fn png(width: u32, height: u32, color: ExtendedColorType, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes)
            .write_image(data, width, height, color)
            .unwrap();
        bytes
    }

    #[test]
    fn drops_alpha_and_replicates_grey() {
        let rgba = png(2, 1, ExtendedColorType::Rgba8, &[1, 2, 3, 0, 4, 5, 6, 128]);
        assert_eq!(read(&rgba).unwrap().rgb, [1, 2, 3, 4, 5, 6]);
        let grey = png(1, 2, ExtendedColorType::L8, &[7, 9]);
        assert_eq!(read(&grey).unwrap().rgb, [7, 7, 7, 9, 9, 9]);
        let deep = [0x0102u16, 0x80ff, 0xfffe].map(u16::to_ne_bytes).concat();
        let deep = png(1, 1, ExtendedColorType::Rgb16, &deep);
        assert_eq!(read(&deep).unwrap().rgb, [0x01, 0x80, 0xff]);
    }

    #[test]
    fn refuses_a_bomb_before_decoding_it() {
        let mut bytes = png(1, 1, ExtendedColorType::L8, &[0]);
        bytes[16..20].copy_from_slice(&100_000u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&100_000u32.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = read(&bytes).unwrap_err();
        assert!(error.to_string().contains("100000 x 100000"), "{error}");
    }

    #[test]
    fn a_colour_profile_that_is_a_bomb_is_not_inflated() {
        let mut bytes = Vec::new();
        let mut encoder = PngEncoder::new(&mut bytes);
        encoder.set_icc_profile(vec![0; 64 << 20]).unwrap();
        let pixels = [1, 2, 3];
        encoder
            .write_image(&pixels, 1, 1, ExtendedColorType::Rgb8)
            .unwrap();
        assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
        let mut opened = open(&bytes).unwrap();
        assert_eq!(opened.decoder.icc_profile().unwrap(), None);
        assert_eq!(opened.read().unwrap().rgb, pixels);
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xEDB8_8320 * (crc & 1))
            })
        })
    }

    proptest! {
        #[test]
        fn damaged_pictures_never_panic(
            at in 0usize..120, byte: u8, cut in 0usize..120, jpeg: bool, tail: Vec<u8>,
        ) {
            let pixels: Vec<u8> = (0..6 * 5 * 3).map(|i| (i * 11 % 256) as u8).collect();
            let mut bytes = if jpeg {
                let mut bytes = Vec::new();
                image::codecs::jpeg::JpegEncoder::new(&mut bytes)
                    .write_image(&pixels, 6, 5, ExtendedColorType::Rgb8)
                    .unwrap();
                bytes
            } else {
                png(6, 5, ExtendedColorType::Rgb8, &pixels)
            };
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len() - cut % bytes.len());
            bytes.extend(tail);
            if let Ok(picture) = read(&bytes) {
                prop_assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
            }
        }

        #[test]
        fn noise_is_refused(bytes: Vec<u8>) {
            prop_assert!(read(&bytes).is_err());
        }
    }
}
