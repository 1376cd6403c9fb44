//! Sizing of a picture before it is tokenised, and its pixels as the ViT reads them.

use super::{Picture, read, resample};
use crate::{Error, Result, checkpoint::config::TransformConfig, text::Grid};

/// Channel-first pixels `[3, height, width]` in -1..=1.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `3 · height · width` values.
    pub values: Vec<f32>,
}

impl From<&Picture> for Pixels {
    fn from(picture: &Picture) -> Self {
        let channel = |c: usize| picture.rgb.iter().skip(c).step_by(3);
        let values = (0..3)
            .flat_map(channel)
            .map(|v| (f32::from(*v) / 255.0 - 0.5) / 0.5);
        Self {
            height: picture.height,
            width: picture.width,
            values: values.collect(),
        }
    }
}

/// Reads a PNG or JPEG and brings it to the size that [`target_size`] gives.
///
/// # Errors
/// [`Error::BadInput`] as [`read::open`], [`read::Opened::read`] and [`target_size`]; the size is
/// checked before any pixel is decoded.
pub fn load(bytes: &[u8], config: &TransformConfig) -> Result<Picture> {
    let opened = read::open(bytes)?;
    let (width, height) = opened.size();
    let (width, height) = target_size(width, height, config)?;
    Ok(resample::bicubic(&opened.read()?, width, height))
}

/// The grid of tokens that a PNG or JPEG becomes, from its header alone.
///
/// # Errors
/// [`Error::BadInput`] as [`read::open`] and [`target_size`].
pub fn grid(bytes: &[u8], config: &TransformConfig) -> Result<Grid> {
    let (width, height) = read::open(bytes)?.size();
    let (width, height) = target_size(width, height, config)?;
    let tokens = |side: usize| (side / config.patch_size) as u32;
    Ok(Grid::new(tokens(height), tokens(width)))
}

/// Width and height to which a picture of `width` x `height` pixels is resized: the short side is
/// enlarged to `short_size`, then the long side reduced to `long_size`, then both are rounded to
/// multiples of `patch_size`, halves to even.
///
/// # Errors
/// [`Error::BadInput`] if the picture is too small or too elongated.
pub fn target_size(
    width: usize,
    height: usize,
    config: &TransformConfig,
) -> Result<(usize, usize)> {
    let given = || format!("{width} x {height} pixels");
    let (mut w, mut h) = (width as f64, height as f64);
    if config.filtering {
        if width.min(height) < config.min_short_size {
            let limit = format!("short side at least {} pixels", config.min_short_size);
            return Err(Error::bad_input("image", limit, given()));
        }
        if w.max(h) / w.min(h) > config.max_aspect_ratio {
            let limit = format!("ratio of the sides at most {}", config.max_aspect_ratio);
            return Err(Error::bad_input("image", limit, given()));
        }
    }
    if w.min(h) < config.short_size as f64 {
        let scale = config.short_size as f64 / w.min(h);
        (w, h) = (w * scale, h * scale);
    }
    if w.max(h) > config.long_size as f64 {
        let scale = config.long_size as f64 / w.max(h);
        (w, h) = (w * scale, h * scale);
    }
    let patches = |side: f64| (side / config.patch_size as f64).round_ties_even() as usize;
    let (w, h) = (patches(w), patches(h));
    if w == 0 || h == 0 {
        let limit = format!(
            "short side at least half of {} pixels as resized",
            config.patch_size
        );
        return Err(Error::bad_input("image", limit, given()));
    }
    Ok((w * config.patch_size, h * config.patch_size))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: TransformConfig = TransformConfig {
        short_size: 64,
        long_size: 160,
        patch_size: 16,
        filtering: true,
        min_short_size: 40,
        max_aspect_ratio: 3.0,
    };

    #[test]
    fn halves_round_to_even() {
        // 88 / 16 = 5.5 and 136 / 16 = 8.5.
        assert_eq!(target_size(88, 136, &CONFIG).unwrap(), (96, 128));
    }

    #[test]
    fn small_pictures_grow_and_long_ones_shrink() {
        assert_eq!(target_size(48, 72, &CONFIG).unwrap(), (64, 96));
        assert_eq!(target_size(300, 200, &CONFIG).unwrap(), (160, 112));
        assert_eq!(target_size(50, 150, &CONFIG).unwrap(), (48, 160));
    }

    #[test]
    fn limits_are_named() {
        let small = target_size(39, 60, &CONFIG).unwrap_err().to_string();
        assert!(
            small.contains("at least 40") && small.contains("39 x 60"),
            "{small}"
        );
        let long = target_size(301, 100, &CONFIG).unwrap_err().to_string();
        assert!(
            long.contains("at most 3") && long.contains("301 x 100"),
            "{long}"
        );
        let open = TransformConfig {
            filtering: false,
            ..CONFIG
        };
        assert!(target_size(1, 1000, &open).is_err());
    }

    proptest! {
        #[test]
        fn sizes_are_whole_patches_within_the_long_side(
            width in 1usize..100_000, height in 1usize..100_000, filtering: bool,
        ) {
            let config = TransformConfig { filtering, ..CONFIG };
            if let Ok((w, h)) = target_size(width, height, &config) {
                prop_assert!(w % 16 == 0 && h % 16 == 0 && w > 0 && h > 0);
                prop_assert!(w.max(h) <= config.long_size);
            }
        }
    }
}
