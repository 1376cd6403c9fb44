//! How the next token is chosen from its scores.

use crate::{Error, Result};

/// Settings of a draw, applied in this order: guidance, temperature, top-k, top-p, min-p.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Scores are divided by it; 0 means greedy.
    pub temperature: f32,
    /// Keep scores at or above the k-th largest; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens with at least this mass; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less probable than this fraction of the best; 0 keeps all.
    pub min_p: f32,
    /// Classifier-free guidance in token space; 1 switches it off.
    pub guidance_scale: f32,
}

impl SamplingParams {
    /// Always the best token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        guidance_scale: 1.0,
    };

    /// Largest accepted temperature.
    pub const MAX_TEMPERATURE: f32 = 100.0;
    /// Largest accepted guidance scale.
    pub const MAX_GUIDANCE_SCALE: f32 = 100.0;

    /// Whether an unconditional sequence runs beside the conditional one.
    pub fn guided(&self) -> bool {
        self.guidance_scale != 1.0
    }

    /// Refuses NaN and out-of-range values.
    ///
    /// # Errors
    /// [`Error::BadInput`] naming the field, its limits and the value.
    pub fn validate(&self) -> Result<()> {
        let ranges = [
            ("temperature", self.temperature, 0.0, Self::MAX_TEMPERATURE),
            ("min_p", self.min_p, 0.0, 1.0),
            (
                "guidance_scale",
                self.guidance_scale,
                0.0,
                Self::MAX_GUIDANCE_SCALE,
            ),
        ];
        for (field, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                return Err(Error::bad_input(
                    field,
                    format!("must be {low} to {high}"),
                    value,
                ));
            }
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::bad_input(
                "top_p",
                "must be above 0 and at most 1",
                self.top_p,
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_nan_and_out_of_range_by_name() {
        type Spoil = fn(&mut SamplingParams);
        let cases: [(&str, Spoil); 8] = [
            ("temperature", |p| p.temperature = f32::NAN),
            ("temperature", |p| p.temperature = -0.1),
            ("temperature", |p| p.temperature = f32::INFINITY),
            ("top_p", |p| p.top_p = 0.0),
            ("top_p", |p| p.top_p = f32::NAN),
            ("min_p", |p| p.min_p = 1.5),
            ("guidance_scale", |p| p.guidance_scale = f32::NAN),
            ("guidance_scale", |p| p.guidance_scale = -1.0),
        ];
        for (name, spoil) in cases {
            let mut params = SamplingParams::GREEDY;
            spoil(&mut params);
            match params.validate() {
                Err(Error::BadInput { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(SamplingParams::GREEDY.validate().is_ok());
    }
}
