//! Case 03: the distributions that tokens are drawn from, and the frequencies of draws.

use serde::Deserialize;
use xomni_engine::sampling::{Draw, SamplingParams, draw, filter::filter};
use xomni_tests::{backbone::Model, golden::Tensors};

#[derive(Deserialize)]
struct Cases {
    suppress_tokens: Vec<usize>,
    settings: Vec<Setting>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Setting {
    name: String,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: Option<f32>,
}

#[derive(Deserialize)]
struct Case {
    input: String,
    setting: String,
    kept_ids: Vec<u32>,
    tensor: String,
}

/// Calls `check` with every case: its name, scores, settings, expected ids and probabilities.
fn each_case(mut check: impl FnMut(&str, &[f32], &SamplingParams, &[u32], &[f32])) {
    let fixture = Model::open().fixture;
    let cases: Cases = fixture.json("03_sampling");
    let expected: Tensors = fixture.tensors("03_sampling");
    assert!(!cases.cases.is_empty());
    for case in &cases.cases {
        let setting = cases
            .settings
            .iter()
            .find(|s| s.name == case.setting)
            .expect("setting");
        let params = SamplingParams {
            temperature: setting.temperature,
            top_k: setting.top_k,
            top_p: setting.top_p,
            min_p: setting.min_p.unwrap_or(0.0),
            guidance_scale: 1.0,
        };
        let mut scores = expected.f32(&format!("{}.logits", case.input));
        for score in &mut scores {
            // The original marks what a mode cannot draw by the lowest finite number (guided
            // scores lie near it).
            if *score < -1e37 {
                *score = f32::NEG_INFINITY;
            }
        }
        for &id in &cases.suppress_tokens {
            scores[id] = f32::NEG_INFINITY;
        }
        check(
            &case.tensor,
            &scores,
            &params,
            &case.kept_ids,
            &expected.f32(&case.tensor),
        );
    }
}

#[test]
fn golden_03_sampling_distributions() {
    each_case(|name, scores, params, kept_ids, probabilities| {
        let kept = filter(scores, params);
        assert_eq!(kept.indices, kept_ids, "{name}");
        for (&id, log_prob) in kept.indices.iter().zip(&kept.log_probs) {
            let (actual, expected) = (log_prob.exp(), probabilities[id as usize]);
            assert!(
                (actual - expected).abs() <= 1e-6,
                "{name} id {id}: {actual} {expected}"
            );
        }
    });
}

/// Pearson's chi-square of 20,000 draws stays below its 0.01 % point (Wilson–Hilferty).
#[test]
fn golden_03_sampling_frequencies() {
    const DRAWS: u32 = 20_000;
    each_case(|name, scores, params, kept_ids, probabilities| {
        let mut counts = vec![0u32; scores.len()];
        for n in 0..DRAWS {
            let at = Draw {
                params: *params,
                seed: 2026,
                image_index: 3,
                n,
                log_prob: false,
            };
            let drawn = draw(scores, None, &at).unwrap();
            counts[drawn.index as usize] += 1;
        }
        let outside = (0..).zip(&counts).filter(|(id, _)| !kept_ids.contains(id));
        assert!(outside.into_iter().all(|(_, &count)| count == 0), "{name}");
        // Rare tokens are pooled, so that every cell expects at least ten draws.
        let (mut chi_square, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
        for &id in kept_ids {
            let expected = f64::from(probabilities[id as usize]) * f64::from(DRAWS);
            let count = f64::from(counts[id as usize]);
            if expected < 10.0 {
                rare = (rare.0 + expected, rare.1 + count);
            } else {
                chi_square += (count - expected).powi(2) / expected;
                cells += 1.0;
            }
        }
        if rare.0 >= 10.0 {
            chi_square += (rare.1 - rare.0).powi(2) / rare.0;
            cells += 1.0;
        }
        let freedom: f64 = cells - 1.0;
        if freedom < 1.0 {
            return;
        }
        let spread = 2.0 / (9.0 * freedom);
        let limit = freedom * (1.0 - spread + 3.719 * spread.sqrt()).powi(3);
        println!("{name}: chi-square {chi_square:.1}, {freedom} degrees, limit {limit:.1}");
        assert!(
            chi_square < limit,
            "{name}: {chi_square} with {freedom} degrees of freedom"
        );
    });
}
