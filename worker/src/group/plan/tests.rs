use proptest::prelude::*;

use super::*;

const LIMITS: PlanLimits = PlanLimits {
    max_rows: 8,
    max_sequences: 4,
    blocks: 16,
    block_size: 4,
    max_positions: 40,
    vocabulary: 100,
};

/// A guided draw in slots 0 and 1, ready for its next token.
fn first() -> Step {
    let draw = DrawSetup {
        params: SamplingParams {
            guidance_scale: 2.0,
            ..SamplingParams::GREEDY
        },
        seed: u64::MAX,
        image_index: 3,
        log_prob: true,
    };
    let admission = |slot, blocks: [u32; 2], draw| Admission {
        slot,
        table: blocks.into(),
        mode: Mode::Image,
        draw,
    };
    let row = |slot, position, token| Row {
        slot,
        position,
        token: TokenSource::Known(token),
    };
    Step {
        id: 0,
        admissions: vec![
            admission(0, [0, 15], Some(draw)),
            admission(1, [2, 3], None),
        ],
        rows: vec![row(0, 0, 99), row(0, 1, 0), row(1, 0, 50)],
        samples: vec![Sample {
            row: 1,
            uncond_row: Some(2),
            n: 0,
        }],
    }
}

fn second() -> Step {
    let row = |slot, position| Row {
        slot,
        position,
        token: TokenSource::Drawn,
    };
    Step {
        id: 1,
        admissions: vec![],
        rows: vec![row(0, 2), row(1, 1)],
        samples: vec![Sample {
            row: 0,
            uncond_row: Some(1),
            n: 1,
        }],
    }
}

#[test]
fn steps_arrive_as_they_were_planned() {
    let mut reader = PlanReader::new(LIMITS);
    for step in [first(), second()] {
        assert_eq!(reader.read(&write(&step)), Ok(step));
    }
}

#[test]
fn what_is_out_of_range_is_refused() {
    type Spoil = fn(&mut proto::Plan);
    let cases: [(&str, Spoil); 18] = [
        ("slot", |p| p.admissions[0].slot = 4),
        ("block", |p| p.admissions[0].table[1] = 16),
        ("table", |p| p.admissions[0].table = vec![0; 17]),
        ("mode", |p| p.admissions[0].mode = 0),
        ("mode", |p| p.admissions[0].mode = 9),
        ("settings", |p| {
            if let Some(draw) = &mut p.admissions[0].draw {
                draw.sampling = None;
            }
        }),
        ("temperature", |p| {
            if let Some(draw) = &mut p.admissions[0].draw {
                draw.sampling = Some(proto::Sampling {
                    temperature: f32::NAN,
                    ..proto::Sampling::default()
                });
            }
        }),
        ("differ", |p| p.positions.push(1)),
        ("differ", |p| p.tokens.truncate(2)),
        ("admitted", |p| p.slots[0] = 2),
        ("position 8", |p| p.positions[0] = 8),
        ("token 100", |p| p.tokens[0] = 101),
        ("before any draw", |p| p.tokens[0] = 0),
        ("row 3", |p| p.samples[0].row = 3),
        ("row 3", |p| p.samples[0].uncond_row = 4),
        ("unconditional", |p| p.samples[0].row = 2),
        ("9 rows", |p| {
            (p.slots, p.positions, p.tokens) = (vec![0; 9], vec![0; 9], vec![1; 9]);
        }),
        ("0 rows", |p| {
            (p.slots, p.positions, p.tokens) = (vec![], vec![], vec![]);
        }),
    ];
    for (what, spoil) in cases {
        let mut plan = write(&first());
        spoil(&mut plan);
        let error = PlanReader::new(LIMITS).read(&plan).expect_err(what);
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
}

proptest! {
    /// Whatever the numbers, a reader answers, and what it lets through is in range.
    #[test]
    fn no_plan_is_a_panic(
        admissions in prop::collection::vec((0u32..6, prop::collection::vec(0u32..20, 0..5)), 0..4),
        rows in prop::collection::vec((0u32..6, 0u32..50, 0u32..120), 0..12),
        samples in prop::collection::vec((0u32..14, 0u32..14), 0..5),
        uncond in any::<bool>(),
    ) {
        let admissions = admissions.into_iter().map(|(slot, table)| proto::PlanAdmission {
            slot,
            table,
            mode: proto::Mode::Image.into(),
            draw: (!uncond).then(|| proto::PlanDraw {
                sampling: Some(proto::Sampling { top_p: 1.0, ..proto::Sampling::default() }),
                ..proto::PlanDraw::default()
            }),
        });
        let plan = proto::Plan {
            step: 0,
            admissions: admissions.collect(),
            slots: rows.iter().map(|row| row.0).collect(),
            positions: rows.iter().map(|row| row.1).collect(),
            tokens: rows.iter().map(|row| row.2).collect(),
            samples: samples
                .into_iter()
                .map(|(row, uncond_row)| proto::PlanSample { row, uncond_row, n: 0 })
                .collect(),
        };
        if let Ok(step) = PlanReader::new(LIMITS).read(&plan) {
            for sample in &step.samples {
                prop_assert!((sample.row as usize) < step.rows.len());
            }
            for row in &step.rows {
                prop_assert!((row.slot as usize) < LIMITS.max_sequences);
            }
            prop_assert_eq!(write(&step), plan);
        }
    }
}
