//! The picture encoder: a picture file to tokens.

use std::{fmt, path::Path, sync::Arc};

use super::WeightsSource;
use crate::{
    Error, Result,
    checkpoint::{XOmniConfig, config::TransformConfig},
    model::{
        siglip::{PATCH, Siglip},
        vq::VqEncoder,
    },
    ops::ImageOps,
    picture::preprocess::{self, Pixels},
    text::grid::Grid,
};

/// ViT and quantiser of an X-Omni directory.
pub struct PictureEncoder<O: ImageOps> {
    ops: Arc<O>,
    transform: TransformConfig,
    siglip: Siglip<O>,
    vq: VqEncoder<O>,
}

impl<O: ImageOps> fmt::Debug for PictureEncoder<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("PictureEncoder");
        fields
            .field("transform", &self.transform)
            .finish_non_exhaustive()
    }
}

impl<O: ImageOps> PictureEncoder<O> {
    /// Loads both models.
    ///
    /// # Errors
    /// As [`Siglip::load`] and [`VqEncoder::load`]; [`Error::Unsupported`] for a patch size that
    /// the ViT does not have.
    pub fn open(
        ops: Arc<O>,
        x_omni_dir: &Path,
        config: &XOmniConfig,
        source: WeightsSource,
    ) -> Result<Self> {
        let (encoder, transform) = (&config.encoder, &config.transform);
        if transform.patch_size != PATCH {
            let what = format!("patch_size {}", transform.patch_size);
            return Err(Error::Unsupported {
                what,
                reason: format!("the ViT's is {PATCH}"),
            });
        }
        let siglip = source.torch(&x_omni_dir.join(&encoder.siglip_path), "siglip")?;
        let projector = source.torch(&x_omni_dir.join(&encoder.projector_path), "projector")?;
        Ok(Self {
            siglip: Siglip::load(&*ops, siglip, encoder)?,
            vq: VqEncoder::load(&*ops, projector, encoder)?,
            transform: transform.clone(),
            ops,
        })
    }

    /// The grid and the codes, row by row, of a PNG or JPEG.
    ///
    /// # Errors
    /// As [`preprocess::load`], and what the device says.
    pub fn encode(&self, picture: &[u8]) -> Result<(Grid, Vec<u32>)> {
        let picture = preprocess::load(picture, &self.transform)?;
        let grid = Grid::new(
            (picture.height / PATCH) as u32,
            (picture.width / PATCH) as u32,
        );
        let (ops, n) = (&*self.ops, grid.tokens());
        let features = self.siglip.forward(ops, &Pixels::from(&picture))?; // [H·W, z_channels]
        let projected = self.vq.project(ops, &features, n)?; // [H·W, codebook_dim]
        Ok((grid, self.vq.nearest(ops, &projected, n)?))
    }

    /// The ViT.
    pub fn siglip(&self) -> &Siglip<O> {
        &self.siglip
    }

    /// The quantiser.
    pub fn vq(&self) -> &VqEncoder<O> {
        &self.vq
    }
}
