//! Gumbel and normal noise as functions of their counters.

use super::philox::{Domain, block, uniform};

/// Standard Gumbel noise of candidate `i` in the `n`-th draw of an image.
pub fn gumbel(seed: u64, image_index: u32, n: u32, i: u32) -> f32 {
    let [word, ..] = block(seed, Domain::Token, image_index, n, i);
    -libm::logf(-libm::logf(uniform(word)))
}

/// Standard normal noise of one element of an image's initial latents (Box–Muller).
pub fn normal(seed: u64, image_index: u32, element: u32) -> f32 {
    let [radius, angle, ..] = block(seed, Domain::Latent, image_index, 0, element);
    let radius = (-2.0 * libm::logf(uniform(radius))).sqrt();
    radius * libm::cosf(std::f32::consts::TAU * uniform(angle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_noise_has_unit_moments() {
        let values: Vec<f64> = (0..100_000).map(|i| f64::from(normal(7, 0, i))).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        let kurtosis = values.iter().map(|v| v.powi(4)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.015, "{mean}");
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
        assert!((kurtosis - 3.0).abs() < 0.15, "{kurtosis}");
    }

    #[test]
    fn gumbel_noise_has_its_mean() {
        let mean = (0..100_000)
            .map(|i| f64::from(gumbel(3, 1, 2, i)))
            .sum::<f64>()
            / 1e5;
        assert!((mean - 0.577_215_66).abs() < 0.02, "{mean}");
    }

    #[test]
    fn every_coordinate_changes_the_noise() {
        let base = gumbel(1, 0, 0, 0);
        for other in [
            gumbel(2, 0, 0, 0),
            gumbel(1, 1, 0, 0),
            gumbel(1, 0, 1, 0),
            gumbel(1, 0, 0, 1),
        ] {
            assert_ne!(base, other);
        }
        assert_ne!(base, gumbel(1 << 32 | 1, 0, 0, 0));
    }
}
