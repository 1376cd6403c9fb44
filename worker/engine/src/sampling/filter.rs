//! Temperature, top-k, top-p and min-p, in the order and with the tie rules of the Hugging Face
//! logits warpers (transformers `TopKLogitsWarper`, `TopPLogitsWarper`, `MinPLogitsWarper`).

use super::SamplingParams;

/// The candidates left after filtering, by ascending index, with the logarithms of their
/// probabilities (which sum to 1 over the candidates).
#[derive(Debug, Clone, PartialEq)]
pub struct Candidates {
    /// Indices into the score vector.
    pub indices: Vec<u32>,
    /// Natural log-probabilities.
    pub log_probs: Vec<f32>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    index: u32,
    score: f32,
}

/// Filters `scores` (`-inf` marks impossible tokens; at least one must be finite).
/// `params.temperature` must be positive.
pub fn filter(scores: &[f32], params: &SamplingParams) -> Candidates {
    let mut kept: Vec<Candidate> = scores
        .iter()
        .enumerate()
        .filter(|(_, score)| **score > f32::NEG_INFINITY)
        .map(|(index, score)| Candidate {
            index: index as u32,
            score: score / params.temperature,
        })
        .collect();
    top_k(&mut kept, params.top_k);
    if params.top_p < 1.0 || params.min_p > 0.0 {
        kept.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.index.cmp(&b.index)));
        top_p(&mut kept, params.top_p);
        min_p(&mut kept, params.min_p);
        kept.sort_unstable_by_key(|candidate| candidate.index);
    }
    let log_sum = log_sum_exp(kept.iter().map(|candidate| candidate.score));
    Candidates {
        indices: kept.iter().map(|candidate| candidate.index).collect(),
        log_probs: kept
            .iter()
            .map(|candidate| candidate.score - log_sum)
            .collect(),
    }
}

/// Natural logarithm of the sum of exponentials, accumulated in order in `f64`.
pub fn log_sum_exp(scores: impl Iterator<Item = f32> + Clone) -> f32 {
    let max = scores.clone().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.map(|score| f64::from(libm::expf(score - max))).sum();
    max + libm::log(sum) as f32
}

fn top_k(kept: &mut Vec<Candidate>, k: usize) {
    if k == 0 || k >= kept.len() {
        return;
    }
    let mut scores: Vec<f32> = kept.iter().map(|candidate| candidate.score).collect();
    let (_, threshold, _) = scores.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    kept.retain(|candidate| candidate.score >= threshold);
}

/// Drops the least probable tokens whose mass, summed from the bottom, stays within `1 - p`.
/// `kept` is sorted by descending score.
fn top_p(kept: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 {
        return;
    }
    let log_sum = log_sum_exp(kept.iter().map(|candidate| candidate.score));
    let mut mass = 0.0;
    let mut dropped = 0;
    for candidate in kept.iter().rev() {
        mass += libm::expf(candidate.score - log_sum);
        if mass > 1.0 - p {
            break;
        }
        dropped += 1;
    }
    kept.truncate((kept.len() - dropped).max(1));
}

/// Drops tokens with a probability below `p` times the largest. `kept` is sorted by descending
/// score.
fn min_p(kept: &mut Vec<Candidate>, p: f32) {
    let Some(best) = kept.first().map(|candidate| candidate.score) else {
        return;
    };
    kept.retain(|candidate| candidate.score == best || libm::expf(candidate.score - best) >= p);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(top_k: usize, top_p: f32, min_p: f32) -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_k,
            top_p,
            min_p,
            guidance_scale: 1.0,
        }
    }

    #[test]
    fn top_k_keeps_ties_of_the_last_place() {
        let kept = filter(&[1.0, 3.0, 2.0, 2.0, 0.0], &params(2, 1.0, 0.0));
        assert_eq!(kept.indices, [1, 2, 3]);
    }

    #[test]
    fn top_p_keeps_at_least_the_best() {
        let kept = filter(&[0.0, 5.0, 0.0], &params(0, 1e-6, 0.0));
        assert_eq!(kept.indices, [1]);
        assert_eq!(kept.log_probs, [0.0]);
    }

    #[test]
    fn min_p_is_relative_to_the_best() {
        let scores = [0.0, libm::logf(0.5), libm::logf(0.11), libm::logf(0.09)];
        assert_eq!(filter(&scores, &params(0, 1.0, 0.1)).indices, [0, 1, 2]);
    }

    #[test]
    fn impossible_tokens_are_never_kept() {
        let scores = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 1.0];
        assert_eq!(filter(&scores, &params(0, 1.0, 0.0)).indices, [1, 3]);
    }
}
