//! The flow-matching schedule with dynamic shifting, in the arithmetic of diffusers'
//! `FlowMatchEulerDiscreteScheduler`.

use crate::checkpoint::flux::FlowConfig;

/// Noise levels of one denoising run.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Noise level before each step, and the final 0: one more than there are steps.
    pub sigmas: Vec<f32>,
    /// `num_train_timesteps · sigma` of each step; not integers.
    pub timesteps: Vec<f32>,
}

impl Schedule {
    /// The schedule of `steps` steps (at least one) for a picture of `tokens` packed latents.
    pub fn new(config: &FlowConfig, tokens: usize, steps: usize) -> Self {
        let shift = libm::exp(mu(config, tokens)) as f32;
        let mut sigmas: Vec<f32> = (0..steps)
            .map(|i| linspace(i, steps) as f32)
            .map(|u| shift / (shift + (1.0 / u - 1.0)))
            .collect();
        let timesteps = sigmas
            .iter()
            .map(|s| s * config.num_train_timesteps as f32)
            .collect();
        sigmas.push(0.0);
        Self { sigmas, timesteps }
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }
}

/// The exponent of the shift: linear in the number of packed latents, extrapolated beyond the
/// configured lengths.
pub fn mu(config: &FlowConfig, tokens: usize) -> f64 {
    let slope = (config.max_shift - config.base_shift)
        / (config.max_image_seq_len - config.base_image_seq_len);
    let offset = config.base_shift - slope * config.base_image_seq_len;
    tokens as f64 * slope + offset
}

/// Element `i` of `n` values from 1 down to `1 / n`.
fn linspace(i: usize, n: usize) -> f64 {
    let last = 1.0 / n as f64;
    match n - i {
        1 if i > 0 => last,
        _ if i == 0 => 1.0,
        _ => 1.0 + i as f64 * ((last - 1.0) / (n - 1) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: FlowConfig = FlowConfig {
        num_train_timesteps: 1000.0,
        base_image_seq_len: 256.0,
        base_shift: 0.5,
        max_image_seq_len: 4096.0,
        max_shift: 1.15,
    };

    #[test]
    fn starts_at_one_and_ends_at_zero() {
        for steps in [1, 2, 28] {
            let schedule = Schedule::new(&CONFIG, 1024, steps);
            assert_eq!(schedule.steps(), steps);
            assert_eq!(schedule.sigmas[0], 1.0);
            assert_eq!(schedule.sigmas[steps], 0.0);
            assert!(schedule.sigmas.is_sorted_by(|a, b| a > b));
        }
    }

    #[test]
    fn mu_is_not_clamped() {
        assert!(mu(&CONFIG, 16) < 0.5);
        assert!(mu(&CONFIG, 5184) > 1.15);
    }
}
