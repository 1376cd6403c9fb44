//! Draws: the CPU's tokens, but for ties within rounding.

use std::sync::Arc;

use xomni_engine::{
    ops::{Device, RowDraw, TransformerOps, cuda::Precision},
    sampling::{Draw, Drawn, SamplingParams, draw, draw::guide, filter::filter, noise::gumbel},
    schedule::Mode,
};

use crate::support::*;

fn params() -> Vec<SamplingParams> {
    let warm = SamplingParams {
        temperature: 1.0,
        ..SamplingParams::GREEDY
    };
    let mut all = vec![SamplingParams::GREEDY, warm];
    for (temperature, top_k, top_p, min_p) in [
        (1.0, 50, 1.0, 0.03),
        (0.8, 0, 0.9, 0.0),
        (1.3, 5, 0.5, 0.2),
        (0.3, 1, 1.0, 0.0),
        (1.0, 0, 1.0, 0.1),
        (1.0, 3, 1e-6, 0.0),
        (2.0, 1000, 0.999, 0.001),
        (1.0, 512, 1.0, 0.0),
        (1.0, 2000, 1.0, 0.0),
    ] {
        all.push(SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            guidance_scale: 1.0,
        });
        all.push(SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            guidance_scale: 3.0,
        });
    }
    all
}

/// Whether two entries are as good as each other but for rounding.
fn tied(scores: &[f32], draw: &Draw, a: u32, b: u32) -> bool {
    let kept = filter(scores, &draw.params);
    let value = |index: u32| {
        let place = kept.indices.iter().position(|&kept| kept == index)?;
        Some(kept.log_probs[place] + gumbel(draw.seed, draw.image_index, draw.n, index))
    };
    match (value(a), value(b)) {
        (Some(a), Some(b)) => (a - b).abs() < 1e-4,
        // Just beyond a cut-off for one of the two.
        _ => false,
    }
}

/// Draws from rows of logits on the device.
fn drawn(
    logits: &[f32],
    vocab: usize,
    mode: Mode,
    draws: &[RowDraw],
    suppressed: &[u32],
) -> Vec<Option<Drawn>> {
    let cuda = gpu(Precision::Bf16);
    let count = logits.len() / vocab;
    let all: Vec<_> = (0..count as u32).map(|p| (0, p, 0)).collect();
    let mut plan = plan(&all);
    plan.admitted = vec![(0, Arc::from([0; 100]))];
    let picked = std::mem::take(&mut plan.picked.image);
    *plan.picked.of_mut(mode) = picked;
    *plan.draws.of_mut(mode) = draws.to_vec();
    let mut rows = cuda.rows(&LIMITS).unwrap();
    let mut buffer = cuda
        .buffer(LIMITS.max_rows.min(count.next_multiple_of(16)) * vocab)
        .unwrap();
    cuda.write(logits, &mut buffer).unwrap();
    cuda.begin(&plan, &mut rows).unwrap();
    cuda.run(&mut rows, false, &mut |rows| {
        cuda.sample(&buffer, 0..vocab as u32, suppressed, mode, rows)
    })
    .unwrap();
    cuda.drawn(&mut rows).unwrap()
}

#[test]
fn draws_are_those_of_the_cpu() {
    let _gpu = alone();
    // Of scores that are alike, more may be equal than a draw looks at together.
    for (vocab, mode, alike) in [
        (5, Mode::Image, false),
        (300, Mode::Text, false),
        (1500, Mode::Image, false),
        (16384, Mode::Image, false),
        (16384, Mode::Image, true),
        (152_064, Mode::Text, false),
    ] {
        let params = params();
        let count = params.len();
        let mut logits = Vec::new();
        let mut draws = Vec::new();
        for (number, params) in params.iter().enumerate() {
            let mut row: Vec<f32> = noise(number as u64 + 1, vocab)
                .iter()
                .map(|v| if alike { (v * 3.0).round() } else { v * 9.0 })
                .collect();
            row[vocab / 2] = f32::NEG_INFINITY;
            let guided = params.guidance_scale != 1.0;
            let index = logits.len() / vocab;
            logits.extend(&row);
            if guided {
                logits.extend(noise(number as u64 + 99, vocab).iter().map(|v| v * 3.0));
            }
            draws.push(RowDraw {
                row: index,
                uncond_row: guided.then_some(index + 1),
                slots: (0, guided.then_some(0)),
                place: params_place(number, count),
                draw: Draw {
                    params: *params,
                    seed: 0x1234_5678_9abc_def0 + number as u64,
                    image_index: number as u32,
                    n: 7 * number as u32,
                    log_prob: number % 3 != 1,
                },
            });
        }
        let suppressed: &[u32] = match mode {
            Mode::Image => &[],
            Mode::Text => &[0, 3, 299],
        };
        let got = drawn(&logits, vocab, mode, &draws, suppressed);
        for wanted in &draws {
            let mut cond = logits[wanted.row * vocab..][..vocab].to_vec();
            for &index in suppressed {
                cond[index as usize] = f32::NEG_INFINITY;
            }
            let uncond = wanted.uncond_row.map(|row| &logits[row * vocab..][..vocab]);
            let want = draw(&cond, uncond, &wanted.draw).expect("finite");
            let got = got[wanted.place].expect("finite");
            let scores = match uncond {
                Some(uncond) => guide(&cond, uncond, wanted.draw.params.guidance_scale),
                None => cond.clone(),
            };
            assert!(
                got.index == want.index || tied(&scores, &wanted.draw, got.index, want.index),
                "{vocab}: {:?}: {got:?}, wanted {want:?}",
                wanted.draw
            );
            assert_eq!(got.log_prob.is_some(), want.log_prob.is_some());
            if got.index == want.index
                && let (Some(got), Some(want)) = (got.log_prob, want.log_prob)
            {
                assert!((got - want).abs() < 1e-3, "{got} and {want}");
            }
        }
    }
}

/// Places in another order than the draws.
fn params_place(number: usize, count: usize) -> usize {
    (number * 7 + 3) % count
}

#[test]
fn the_default_settings_draw_the_same_tokens_a_thousand_times() {
    let _gpu = alone();
    let vocab = 4096;
    let params = SamplingParams {
        temperature: 1.0,
        top_k: 50,
        top_p: 1.0,
        min_p: 0.03,
        guidance_scale: 1.0,
    };
    let logits: Vec<f32> = noise(4, vocab).iter().map(|v| v * 12.0).collect();
    let draws: Vec<RowDraw> = (0..500)
        .map(|n| RowDraw {
            row: 0,
            uncond_row: None,
            slots: (0, None),
            place: n as usize,
            draw: Draw {
                params,
                seed: 9,
                image_index: 1,
                n,
                log_prob: false,
            },
        })
        .collect();
    // As many picked rows as draws, as in a step.
    let rows: Vec<f32> = logits.repeat(500);
    let got = drawn(&rows, vocab, Mode::Image, &draws, &[]);
    let mut seen = std::collections::HashSet::new();
    for (got, wanted) in got.iter().zip(&draws) {
        let want = draw(&logits, None, &wanted.draw).expect("finite").index;
        let got = got.expect("finite").index;
        assert!(
            got == want || tied(&logits, &wanted.draw, got, want),
            "{got}, wanted {want}"
        );
        seen.insert(got);
    }
    assert!(seen.len() > 10, "{} different tokens", seen.len());
}

#[test]
fn scores_that_are_not_finite_draw_nothing() {
    let _gpu = alone();
    let (vocab, inf) = (64, f32::INFINITY);
    let mut rows = vec![0.5; 5 * vocab];
    rows[3] = f32::NAN;
    rows[vocab + 63] = inf;
    rows[2 * vocab..3 * vocab].fill(-inf);
    let of = |row: usize, uncond_row, temperature| RowDraw {
        row,
        uncond_row,
        slots: (0, None),
        place: 0,
        draw: Draw {
            params: SamplingParams {
                temperature,
                top_k: 3,
                top_p: 0.9,
                min_p: 0.1,
                guidance_scale: 2.0,
            },
            seed: 1,
            image_index: 0,
            n: 0,
            log_prob: true,
        },
    };
    for temperature in [0.0, 1.0] {
        for (row, uncond_row) in [
            (0, None),
            (1, None),
            (2, None),
            (3, Some(0)),
            (3, Some(1)),
            (3, Some(2)),
        ] {
            let got = drawn(
                &rows,
                vocab,
                Mode::Image,
                &[of(row, uncond_row, temperature)],
                &[],
            );
            assert_eq!(got, [None], "row {row}, {uncond_row:?}");
        }
        let got = drawn(
            &rows,
            vocab,
            Mode::Image,
            &[of(3, Some(4), temperature)],
            &[],
        );
        assert!(got[0].is_some());
    }
}
