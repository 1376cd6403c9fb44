//! Rotary embedding, cache and attention: against the CPU's, and the same bits in every tiling.

use std::ops::Range;

use xomni_engine::ops::{
    Device, KvLayout, MatrixPart, StepLimits, StepRows, TransformerOps, cpu::Cpu, cuda::Precision,
};

use crate::support::*;

/// Query heads of each K/V head, and channels a head.
type Heads = (&'static [usize], usize);

const GROUP_OF_SEVEN: Heads = (&[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1], 128);
const UNEVEN: Heads = (&[0, 0, 0, 1], 64);
const TINY: Heads = (&[0, 0, 0, 0, 1, 1, 1, 1], 16);
/// So many K/V heads that a multiprocessor has more than one split of a row.
const MANY: Heads = (&ALL_OF_THEIR_OWN, 16);
const ALL_OF_THEIR_OWN: [usize; 60] = {
    let mut of = [0; 60];
    let mut head = 0;
    while head < of.len() {
        of[head] = head;
        head += 1;
    }
    of
};

/// So wide that two chunks of a row have no room where a product folds them.
const WIDE: Heads = (&EIGHT_EACH, 128);
const EIGHT_EACH: [usize; 40] = {
    let mut of = [0; 40];
    let mut head = 0;
    while head < of.len() {
        of[head] = head / 8;
        head += 1;
    }
    of
};

/// Rows by sequence and positions.
type Work<'a> = &'a [(u32, Range<u32>)];

/// What steps came to: of the rows of the last one, the attention and a product with it, and the cached block of its first row.
struct Outcome {
    attended: Vec<f32>,
    product: Vec<f32>,
    block: Vec<f32>,
}

/// Outputs of the product.
const OUTS: usize = 96;

/// Runs the steps in turn.
fn run<O: TransformerOps>(
    ops: &O,
    (kv_head_of, head_dim): Heads,
    window: Option<usize>,
    steps: &[Work<'_>],
) -> Outcome {
    let kv_heads = kv_head_of[kv_head_of.len() - 1] + 1;
    let layout = KvLayout {
        layers: 2,
        kv_heads,
        head_dim,
        blocks: 400,
        block_size: 16,
    };
    let width = (kv_head_of.len() + 2 * kv_heads) * head_dim;
    let limits = StepLimits {
        window,
        kv_heads,
        ..LIMITS
    };
    let mut kv = ops.kv_cache(layout).unwrap();
    let mut rows = ops.rows(&limits).unwrap();
    let most = LIMITS.max_rows;
    let mut qkv = ops.buffer(most * width).unwrap();
    let attended_width = kv_head_of.len() * head_dim;
    let mut out = ops.activations(most * attended_width).unwrap();
    let chunks: Vec<_> = (0..8)
        .map(|chunk| attended_width * chunk / 8..attended_width * (chunk + 1) / 8)
        .collect();
    let part = MatrixPart::whole(tensor(&[OUTS, attended_width], 5));
    let weight = ops.matrix_in_chunks(&[part], &chunks).unwrap();
    let mut product = ops.buffer(most * OUTS).unwrap();
    let (mut count, mut block) = (0, 0);
    for (number, work) in steps.iter().enumerate() {
        let all: Vec<_> = work
            .iter()
            .flat_map(|(slot, positions)| positions.clone().map(|p| (*slot, p, 0)))
            .collect();
        let mut plan = plan(&all);
        if number == 0 {
            let table = |slot: u32| (0..100).map(|n| (slot * 100 + n) * 71 % 400).collect();
            plan.admitted = (0..3).map(|slot| (slot, table(slot))).collect();
        }
        let values: Vec<f32> = all
            .iter()
            .flat_map(|&(slot, position, _)| noise(u64::from(slot * 5000 + position + 1), width))
            .collect();
        block = (all[0].0 * 100 + all[0].1 / 16) * 71 % 400;
        ops.begin(&plan, &mut rows).unwrap();
        ops.write(&values, &mut qkv).unwrap();
        ops.run(&mut rows, false, &mut |rows| {
            ops.append_and_attend(
                &mut qkv, rows, kv_head_of, 1e4, window, 1, &mut kv, None, &mut out,
            )?;
            ops.linear_chunked(&out, rows.len(), &weight, &chunks, &mut product)
        })
        .unwrap();
        ops.drawn(&mut rows).unwrap();
        count = all.len();
    }
    let (mut keys, values) = ops.read_kv(&kv, 1, block).unwrap();
    keys.extend(values);
    Outcome {
        attended: ops.read(&out, count * attended_width).unwrap(),
        product: ops.read(&product, count * OUTS).unwrap(),
        block: keys,
    }
}

#[test]
fn attention_is_that_of_the_cpu() {
    let _gpu = alone();
    let steps: &[Work<'_>] = &[
        &[(0, 0..500), (1, 0..3)],
        &[(0, 500..1000)],
        &[(2, 0..1), (0, 1000..1004), (1, 3..5)],
        &[(1, 5..6), (0, 1004..1006), (2, 1..2)],
        // No row sees another.
        &[(0, 1006..1007), (2, 2..3), (1, 6..7)],
        &[(1, 7..8), (0, 1007..1008)],
        &[(0, 1008..1009)],
    ];
    for heads in [GROUP_OF_SEVEN, UNEVEN, TINY] {
        for (window, last) in [None, Some(1), Some(5), Some(300)]
            .into_iter()
            .flat_map(|window| [(window, 5), (window, 6)])
        {
            let steps = &steps[..=last];
            let want = run(&Cpu::new(), heads, window, steps);
            for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 8e-3)] {
                let got = run(&gpu(precision), heads, window, steps);
                let what = format!(
                    "{} heads of {}, window {window:?}, {precision:?}",
                    heads.0.len(),
                    heads.1
                );
                assert_close(&what, &got.attended, &want.attended, tolerance);
                assert_close("product", &got.product, &want.product, tolerance);
                assert_close("cache", &got.block, &want.block, tolerance);
            }
        }
    }
}

#[test]
fn a_row_attends_alike_in_any_step() {
    let _gpu = alone();
    for heads in [GROUP_OF_SEVEN, TINY, MANY, WIDE] {
        let width = heads.0.len() * heads.1;
        for precision in [Precision::Bf16, Precision::F32] {
            let cuda = gpu(precision);
            let first: Work<'_> = &[(0, 0..500)];
            // Enough rows to be one item each; then the same rows as splits.
            let whole = run(&cuda, heads, None, &[first, &[(0, 500..1000), (1, 0..20)]]);
            for start in [500, 511, 767, 768, 990] {
                let end = 1000.min(start + 9);
                let few = run(
                    &cuda,
                    heads,
                    None,
                    &[first, &[(0, 500..start)], &[(2, 0..7), (0, start..end)]]
                        .into_iter()
                        .filter(|work| !work[0].1.is_empty())
                        .collect::<Vec<_>>(),
                );
                for beside in [0, 1] {
                    let last: Vec<_> = [(1, 0..beside), (0, start..start + 1)]
                        .into_iter()
                        .filter(|(_, positions)| !positions.is_empty())
                        .collect();
                    let alone = run(
                        &cuda,
                        heads,
                        None,
                        &[first, &[(0, 500..start)], &last]
                            .into_iter()
                            .filter(|work| !work[0].1.is_empty())
                            .collect::<Vec<_>>(),
                    );
                    let what = format!("a row beside {beside}");
                    assert_same_bits(
                        &what,
                        &alone.attended[beside as usize * width..],
                        &few.attended[7 * width..8 * width],
                    );
                    assert_same_bits(
                        &what,
                        &alone.product[beside as usize * OUTS..],
                        &few.product[7 * OUTS..8 * OUTS],
                    );
                }
                let same = start as usize - 500..end as usize - 500;
                let what = format!("{precision:?} from {start}");
                assert_same_bits(
                    &what,
                    &few.attended[7 * width..],
                    &whole.attended[same.start * width..same.end * width],
                );
                assert_same_bits(
                    &what,
                    &few.product[7 * OUTS..],
                    &whole.product[same.start * OUTS..same.end * OUTS],
                );
            }
        }
    }
}

#[test]
fn what_another_sequence_left_behind_is_not_read() {
    let _gpu = alone();
    let cuda = gpu(Precision::Bf16);
    let layout = KvLayout {
        layers: 1,
        kv_heads: 1,
        head_dim: 64,
        blocks: 4,
        block_size: 16,
    };
    let width = 3 * 64;
    let run = |spoilt: bool| {
        let mut kv = cuda.kv_cache(layout).unwrap();
        let mut rows = cuda.rows(&LIMITS).unwrap();
        let mut qkv = cuda.buffer(LIMITS.max_rows * width).unwrap();
        let mut out = cuda.activations(LIMITS.max_rows * 64).unwrap();
        for (slot, length, value) in [(0, 16, f32::NAN), (1, 5, 0.0)] {
            if slot == 0 && !spoilt {
                continue;
            }
            let all: Vec<_> = (0..length).map(|p| (slot, p, 0)).collect();
            let mut plan = plan(&all);
            plan.admitted = vec![(slot, vec![2].into())];
            let values: Vec<f32> = noise(9, all.len() * width)
                .iter()
                .map(|v| v + value)
                .collect();
            cuda.begin(&plan, &mut rows).unwrap();
            cuda.write(&values, &mut qkv).unwrap();
            cuda.run(&mut rows, false, &mut |rows| {
                cuda.append_and_attend(&mut qkv, rows, &[0], 1e4, None, 0, &mut kv, None, &mut out)
            })
            .unwrap();
            cuda.drawn(&mut rows).unwrap();
        }
        cuda.read(&out, 5 * 64).unwrap()
    };
    assert_same_bits("a used block", &run(true), &run(false));
}
