//! One token from one (or, guided, two) score vectors.

use super::{
    SamplingParams,
    filter::{filter, log_sum_exp},
    noise::gumbel,
};

/// Where a draw stands in the space of all draws, and how it is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// Settings.
    pub params: SamplingParams,
    /// Seed of the request.
    pub seed: u64,
    /// Index of the image (or answer) within its request.
    pub image_index: u32,
    /// Number of tokens drawn before this one.
    pub n: u32,
    /// Whether [`Drawn::log_prob`] is wanted.
    pub log_prob: bool,
}

/// The outcome of a draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// Index into the score vector.
    pub index: u32,
    /// Natural log-probability of the token before temperature and filters (after guidance, where
    /// that is on), if it was wanted.
    pub log_prob: Option<f32>,
}

/// Draws from `cond` (logits, `-inf` where impossible), guided away from `uncond` where given:
/// `argmax_i(log p_i + gumbel_i)` over the filtered distribution, ties to the lowest index.
///
/// Guidance works on log-probabilities: `g (log p_c - log p_u) + log p_u` (transformers
/// `UnbatchedClassifierFreeGuidanceLogitsProcessor`).
///
/// `None` if a score is `inf` or NaN, or if every token is impossible.
pub fn draw(cond: &[f32], uncond: Option<&[f32]>, draw: &Draw) -> Option<Drawn> {
    let guided = uncond.map(|uncond| guide(cond, uncond, draw.params.guidance_scale));
    let scores = guided.as_deref().unwrap_or(cond);
    if !drawable(scores) {
        return None;
    }
    let index = if draw.params.temperature == 0.0 {
        argmax(scores.iter().copied())
    } else {
        let kept = filter(scores, &draw.params);
        let noisy = kept
            .indices
            .iter()
            .zip(&kept.log_probs)
            .map(|(&index, log_prob)| {
                log_prob + gumbel(draw.seed, draw.image_index, draw.n, index)
            });
        *kept.indices.get(argmax(noisy))? as usize
    };
    let log_prob = || scores[index] - log_sum_exp(scores.iter().copied());
    Some(Drawn {
        index: index as u32,
        log_prob: draw.log_prob.then(log_prob),
    })
}

/// Whether some score is finite and none is `inf` or NaN.
fn drawable(scores: &[f32]) -> bool {
    let spoilt = |score: &f32| score.is_nan() || *score == f32::INFINITY;
    !scores.iter().any(spoilt) && scores.iter().any(|score| score.is_finite())
}

/// Guided scores of two logit vectors.
pub fn guide(cond: &[f32], uncond: &[f32], scale: f32) -> Vec<f32> {
    let log_c = log_sum_exp(cond.iter().copied());
    let log_u = log_sum_exp(uncond.iter().copied());
    cond.iter()
        .zip(uncond)
        .map(|(c, u)| {
            let (c, u) = (c - log_c, u - log_u);
            if c == f32::NEG_INFINITY {
                c
            } else {
                scale * (c - u) + u
            }
        })
        .collect()
}

fn argmax(values: impl Iterator<Item = f32>) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u32, params: SamplingParams) -> Draw {
        Draw {
            params,
            seed: 11,
            image_index: 0,
            n,
            log_prob: true,
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let drawn = draw(&[0.0, 2.0, 2.0], None, &at(0, SamplingParams::GREEDY));
        assert_eq!(drawn.map(|drawn| drawn.index), Some(1));
    }

    #[test]
    fn scores_that_are_not_finite_draw_nothing() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let warm = SamplingParams {
            temperature: 1.0,
            top_k: 2,
            top_p: 0.9,
            min_p: 0.1,
            ..SamplingParams::GREEDY
        };
        let finite = [0.0, 1.0, 2.0];
        for params in [SamplingParams::GREEDY, warm] {
            for spoilt in [[nan; 3], [0.0, nan, 1.0], [0.0, inf, 1.0], [-inf; 3]] {
                assert_eq!(draw(&spoilt, None, &at(0, params)), None, "{spoilt:?}");
                let guided = SamplingParams {
                    guidance_scale: 3.0,
                    ..params
                };
                let (cond, uncond) = (&spoilt[..], &finite[..]);
                assert_eq!(draw(cond, Some(uncond), &at(0, guided)), None);
                assert_eq!(draw(uncond, Some(cond), &at(0, guided)), None);
            }
            assert!(draw(&[-inf, 1.0, -inf], None, &at(0, params)).is_some());
        }
    }

    #[test]
    fn log_prob_is_computed_on_request() {
        let quiet = Draw {
            log_prob: false,
            ..at(0, SamplingParams::GREEDY)
        };
        let drawn = draw(&[0.0, 1.0], None, &quiet).expect("finite");
        assert_eq!((drawn.index, drawn.log_prob), (1, None));
    }

    #[test]
    fn log_prob_is_of_the_unfiltered_distribution() {
        let params = SamplingParams {
            temperature: 0.5,
            top_k: 1,
            ..SamplingParams::GREEDY
        };
        let drawn = draw(&[0.0, libm::logf(3.0)], None, &at(0, params)).expect("finite");
        assert_eq!(drawn.index, 1);
        assert!((drawn.log_prob.expect("wanted") - libm::logf(0.75)).abs() < 1e-6);
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let probabilities = [0.1f32, 0.2, 0.3, 0.4];
        let logits = probabilities.map(libm::logf);
        let params = SamplingParams {
            temperature: 1.0,
            ..SamplingParams::GREEDY
        };
        let mut counts = [0f64; 4];
        const DRAWS: u32 = 20_000;
        for n in 0..DRAWS {
            let drawn = draw(&logits, None, &at(n, params)).expect("finite");
            counts[drawn.index as usize] += 1.0;
        }
        let chi_square: f64 = counts
            .iter()
            .zip(probabilities)
            .map(|(count, p)| {
                let expected = f64::from(p) * f64::from(DRAWS);
                (count - expected).powi(2) / expected
            })
            .sum();
        assert!(
            chi_square < 16.27,
            "0.1 % point of chi-square with 3 degrees: {chi_square}"
        );
    }

    #[test]
    fn guidance_of_one_changes_nothing_but_the_norm() {
        let scores = guide(&[0.0, 1.0], &[5.0, -3.0], 1.0);
        assert!((scores[1] - scores[0] - 1.0).abs() < 1e-6);
    }
}
