//! Latents of a picture: `[channels, 2 H, 2 W]` as drawn, `[H·W, 4 channels]` packed for the
//! transformer, `[2 H · 2 W, channels]` for the VAE.

use crate::{sampling::noise::normal, text::grid::Grid};

/// Latents per token, on each axis.
pub const SIDE: usize = 2;

/// Standard normal initial latents, packed. A value depends on `seed`, `image_index` and its index
/// in the unpacked shape only.
pub fn noise(seed: u64, image_index: u32, grid: Grid, channels: usize) -> Vec<f32> {
    let elements = 0..(channels * SIDE * SIDE * grid.tokens()) as u32;
    let unpacked: Vec<f32> = elements.map(|i| normal(seed, image_index, i)).collect();
    pack(&unpacked, grid, channels)
}

/// `[channels, 2 H, 2 W]` to `[H·W, 4 channels]`; the columns of a row run over channel, latent
/// row, latent column.
pub fn pack(unpacked: &[f32], grid: Grid, channels: usize) -> Vec<f32> {
    let mut packed = vec![0.0; unpacked.len()];
    each_latent(
        grid,
        channels,
        |packed_at, channel, row, column, [rows, columns]| {
            packed[packed_at] = unpacked[(channel * rows + row) * columns + column];
        },
    );
    packed
}

/// `[H·W, 4 channels]` to `[2 H · 2 W, channels]`.
pub fn unpack(packed: &[f32], grid: Grid, channels: usize) -> Vec<f32> {
    let mut unpacked = vec![0.0; packed.len()];
    each_latent(
        grid,
        channels,
        |packed_at, channel, row, column, [_, columns]| {
            unpacked[(row * columns + column) * channels + channel] = packed[packed_at];
        },
    );
    unpacked
}

/// Calls `visit(packed index, channel, row, column, [rows, columns])` for every latent.
fn each_latent(
    grid: Grid,
    channels: usize,
    mut visit: impl FnMut(usize, usize, usize, usize, [usize; 2]),
) {
    let (height, width) = (grid.height as usize, grid.width as usize);
    let mut packed_at = 0;
    for y in 0..height {
        for x in 0..width {
            for channel in 0..channels {
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let (row, column) = (SIDE * y + dy, SIDE * x + dx);
                    visit(
                        packed_at,
                        channel,
                        row,
                        column,
                        [SIDE * height, SIDE * width],
                    );
                    packed_at += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacking_transposes_what_was_packed() {
        let (grid, channels) = (Grid::new(3, 2), 5);
        let (rows, columns) = (6, 4);
        let drawn: Vec<f32> = (0..channels * rows * columns).map(|v| v as f32).collect();
        let packed = pack(&drawn, grid, channels);
        // Token (0, 1): its first channel's four latents.
        assert_eq!(packed[4 * channels..][..4], [2.0, 3.0, 6.0, 7.0]);
        let unpacked = unpack(&packed, grid, channels);
        for (position, values) in unpacked.chunks_exact(channels).enumerate() {
            for (channel, value) in values.iter().enumerate() {
                assert_eq!(*value, drawn[channel * rows * columns + position]);
            }
        }
    }

    #[test]
    fn noise_differs_by_seed_and_picture() {
        let of = |seed, index| noise(seed, index, Grid::new(1, 1), 4);
        assert_eq!(of(1, 0), of(1, 0));
        assert_ne!(of(1, 0), of(2, 0));
        assert_ne!(of(1, 0), of(1, 1));
    }
}
