//! The file formats that pictures are delivered in.

use std::io::Cursor;

use image::{
    ExtendedColorType, ImageEncoder,
    codecs::{jpeg::JpegEncoder, webp::WebPEncoder},
};
use serde::{Deserialize, Serialize};
use xomni_engine::{Error, Result, picture::read};

/// JPEG quality where none is asked for.
const QUALITY: u8 = 100;

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    /// The very bytes of the decoder.
    Png,
    /// Lossy.
    Jpeg,
    /// Lossless.
    Webp,
}

impl OutputFormat {
    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }

    /// How its files' names end.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }
}

/// A file format and how much it may lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    format: OutputFormat,
    quality: u8,
}

impl Encoding {
    /// A format, and its quality from 0 to 100.
    ///
    /// # Errors
    /// [`Error::BadInput`] for a quality that is out of range, or of a format that loses nothing.
    pub fn new(format: OutputFormat, quality: Option<u32>) -> Result<Self> {
        let field = "output_compression";
        let quality = quality.unwrap_or(QUALITY.into());
        let checked = u8::try_from(quality).ok().filter(|quality| *quality <= 100);
        let checked =
            checked.ok_or_else(|| Error::bad_input(field, "must be 0 to 100", quality))?;
        if format != OutputFormat::Jpeg && checked != QUALITY {
            let limit = format!("must be 100 for {}, which is lossless", format.extension());
            return Err(Error::bad_input(field, limit, quality));
        }
        Ok(Self {
            format,
            quality: checked,
        })
    }

    /// The format.
    pub fn format(self) -> OutputFormat {
        self.format
    }

    /// A PNG as a file of this format, without holding up this thread's other tasks.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] for bytes that are no picture.
    pub async fn encode(self, png: Vec<u8>) -> Result<Vec<u8>> {
        if self.format == OutputFormat::Png {
            return Ok(png);
        }
        let encoded = tokio::task::spawn_blocking(move || self.convert(&png)).await;
        encoded.unwrap_or_else(|error| Err(Error::worker_lost("encoder", error.to_string())))
    }

    fn convert(self, png: &[u8]) -> Result<Vec<u8>> {
        let failed = |error: String| Error::worker_lost("decoder", error);
        let picture = read::read(png).map_err(|error| failed(error.to_string()))?;
        let (width, height) = (picture.width as u32, picture.height as u32);
        let mut file = Cursor::new(vec![]);
        let (pixels, kind) = (&picture.rgb, ExtendedColorType::Rgb8);
        let written = match self.format {
            OutputFormat::Png => return Ok(png.to_vec()),
            // Quality 0 is the encoder's 1.
            OutputFormat::Jpeg => JpegEncoder::new_with_quality(&mut file, self.quality.max(1))
                .write_image(pixels, width, height, kind),
            OutputFormat::Webp => {
                WebPEncoder::new_lossless(&mut file).write_image(pixels, width, height, kind)
            }
        };
        written.map_err(|error| failed(error.to_string()))?;
        Ok(file.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use xomni_engine::picture::{Picture, png};

    use super::*;

    fn picture() -> Picture {
        let rgb = (0..32 * 16 * 3).map(|at| (at * 7 % 251) as u8).collect();
        Picture {
            width: 32,
            height: 16,
            rgb,
        }
    }

    #[tokio::test]
    async fn lossless_formats_lose_nothing_and_png_is_untouched() {
        let png = png::encode(&picture()).expect("png");
        let same = Encoding::new(OutputFormat::Png, Some(100)).expect("valid");
        assert_eq!(same.encode(png.clone()).await.expect("png"), png);
        let webp = Encoding::new(OutputFormat::Webp, None).expect("valid");
        let webp = webp.encode(png).await.expect("webp");
        assert_eq!(&webp[..4], b"RIFF");
        let read = image::load_from_memory(&webp).expect("readable");
        assert_eq!(read.to_rgb8().into_raw(), picture().rgb);
    }

    #[tokio::test]
    async fn worse_jpegs_are_smaller() {
        let png = png::encode(&picture()).expect("png");
        let mut sizes = vec![];
        for quality in [0, 50, 100] {
            let jpeg = Encoding::new(OutputFormat::Jpeg, Some(quality)).expect("valid");
            let jpeg = jpeg.encode(png.clone()).await.expect("jpeg");
            let read = read::read(&jpeg).expect("readable");
            assert_eq!((read.width, read.height), (32, 16));
            sizes.push(jpeg.len());
        }
        assert!(sizes.is_sorted(), "{sizes:?}");
    }
}
