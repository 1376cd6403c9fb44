use super::*;
use crate::ops::{AttentionShape, ImageOps, KvLayout};

/// `softmax(scores) · values` in `f64`.
fn mix64(scores: &[f64], values: &[Vec<f64>]) -> Vec<f64> {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let p: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let sum: f64 = p.iter().sum();
    (0..values[0].len())
        .map(|c| p.iter().zip(values).map(|(p, v)| p * v[c]).sum::<f64>() / sum)
        .collect()
}

fn dot64(a: &[f32], b: &[f32]) -> f64 {
    widen(a).iter().zip(widen(b)).map(|(a, b)| a * b).sum()
}

#[test]
fn dense_attention_is_softmax_attention() {
    for (batch, len, heads, head_dim) in [
        (1, 1, 1, 4),
        (2, 19, 3, 8),
        (1, 131, 2, 40),
        (3, 70, 1, 128),
    ] {
        let shape = AttentionShape {
            batch,
            len,
            heads,
            head_dim,
        };
        let width = heads * head_dim;
        let [q, k, v] = [1, 2, 3].map(|seed| noise(seed, batch * len * width));
        let bias = noise(4, heads * len * len);
        for (causal, biased) in [(false, false), (true, false), (false, true), (true, true)] {
            let got = everywhere(|cpu| {
                let [q, k, v] = [&q, &k, &v].map(|values| cpu.upload(values).unwrap());
                let bias = cpu.upload(&bias).unwrap();
                let bias = biased.then_some(&bias);
                let mut out = cpu.buffer(batch * len * width).unwrap();
                cpu.dense_attention(&q, &k, &v, shape, 0.7, bias, causal, &mut out)
                    .unwrap();
                cpu.download(&out).unwrap()
            });
            let mut want = Vec::new();
            for (b, i, h) in (0..batch)
                .flat_map(|b| (0..len).map(move |i| (b, i)))
                .flat_map(|(b, i)| (0..heads).map(move |h| (b, i, h)))
            {
                let head = |values: &[f32], j: usize| {
                    values[(b * len + j) * width + h * head_dim..][..head_dim].to_vec()
                };
                let seen = if causal { i + 1 } else { len };
                let scores: Vec<f64> = (0..seen)
                    .map(|j| {
                        let bias = f64::from(bias[(h * len + i) * len + j]);
                        0.7 * dot64(&head(&q, i), &head(&k, j)) + if biased { bias } else { 0.0 }
                    })
                    .collect();
                let values: Vec<_> = (0..seen).map(|j| widen(&head(&v, j))).collect();
                want.extend(mix64(&scores, &values));
            }
            assert_close(&got, &want, 2e-6);
        }
    }
}

const LAYOUT: KvLayout = KvLayout {
    layers: 2,
    kv_heads: 2,
    head_dim: 24,
    blocks: 200,
    block_size: 16,
};
const KV_HEAD_OF: [usize; 5] = [0, 0, 1, 1, 0];
const WIDTH: usize = (KV_HEAD_OF.len() + 4) * LAYOUT.head_dim;
const THETA: f64 = 1e4;

/// Rows for `(sequence, positions)` with scrambled, disjoint block tables.
fn rows(work: &[(u32, std::ops::Range<u32>)]) -> Rows {
    let mut rows = RowBatch::default();
    for sequence in 0..3 {
        rows.tables
            .push((0..60).map(|n| (sequence * 60 + n) * 71 % 200).collect());
    }
    for (sequence, positions) in work {
        for position in positions.clone() {
            rows.tokens.push(0);
            rows.multimodal.push(false);
            rows.positions.push(position);
            rows.tables_index.push(*sequence);
        }
    }
    Rows::of(rows)
}

/// The `qkv` row of a position of a sequence.
fn qkv(sequence: u32, position: u32) -> Vec<f32> {
    noise(u64::from(sequence * 5000 + position + 1), WIDTH)
}

/// Runs the steps in turn on layer 1 and returns the attention of the rows of the last one.
fn run_steps(cpu: Cpu, steps: &[Rows], window: Option<usize>) -> Vec<f32> {
    let mut kv = cpu.kv_cache(LAYOUT).unwrap();
    let mut last = Vec::new();
    for rows in steps {
        let values: Vec<f32> = rows
            .batch
            .positions
            .iter()
            .zip(&rows.batch.tables_index)
            .flat_map(|(&position, &sequence)| qkv(sequence, position))
            .collect();
        let mut buffer = cpu.upload(&values).unwrap();
        cpu.rope_append(&mut buffer, KV_HEAD_OF.len(), rows, THETA, 1, &mut kv)
            .unwrap();
        let mut out = cpu
            .buffer(rows.batch.len() * KV_HEAD_OF.len() * LAYOUT.head_dim)
            .unwrap();
        cpu.attention(&buffer, rows, &KV_HEAD_OF, window, 1, &kv, None, &mut out)
            .unwrap();
        last = cpu.download(&out).unwrap();
    }
    last
}

fn rotate64(x: &[f32], position: u32) -> Vec<f32> {
    let half = x.len() / 2;
    let mut out = vec![0.0; x.len()];
    for j in 0..half {
        let angle = f64::from(position) * THETA.powf(-2.0 * j as f64 / x.len() as f64);
        let (a, b) = (f64::from(x[j]), f64::from(x[j + half]));
        out[j] = (a * angle.cos() - b * angle.sin()) as f32;
        out[j + half] = (b * angle.cos() + a * angle.sin()) as f32;
    }
    out
}

/// Attention of one position of one sequence in `f64`.
fn want(sequence: u32, position: u32, window: Option<usize>) -> Vec<f64> {
    let dim = LAYOUT.head_dim;
    let first = window.map_or(0, |window| (position as usize + 1).saturating_sub(window));
    let visible = first as u32..position + 1;
    let own = qkv(sequence, position);
    let mut out = Vec::new();
    for (head, kv_head) in KV_HEAD_OF.into_iter().enumerate() {
        let query = rotate64(&own[head * dim..][..dim], position);
        let mut scores = Vec::new();
        let mut values = Vec::new();
        for j in visible.clone() {
            let row = qkv(sequence, j);
            let key = rotate64(&row[(KV_HEAD_OF.len() + kv_head) * dim..][..dim], j);
            scores.push(dot64(&query, &key) / (dim as f64).sqrt());
            values.push(widen(&row[(KV_HEAD_OF.len() + 2 + kv_head) * dim..][..dim]));
        }
        out.extend(mix64(&scores, &values));
    }
    out
}

#[test]
fn row_attention_reads_paged_sequences() {
    let steps = [
        rows(&[(0, 0..600), (1, 0..3)]),
        rows(&[(2, 0..1), (0, 600..604), (1, 3..5)]),
        rows(&[(1, 5..6), (0, 604..606), (2, 1..2)]),
    ];
    for window in [None, Some(1), Some(5), Some(300), Some(10_000)] {
        let got = everywhere(|cpu| run_steps(cpu, &steps, window));
        let want: Vec<f64> = [(1, 5), (0, 604), (0, 605), (2, 1)]
            .into_iter()
            .flat_map(|(sequence, position)| want(sequence, position, window))
            .collect();
        assert_close(&got, &want, 3e-6);
    }
}

#[test]
fn a_query_sees_its_own_sequence_alone() {
    let cpu = Cpu::new();
    let width = KV_HEAD_OF.len() * LAYOUT.head_dim;
    let together = run_steps(cpu, &[rows(&[(1, 0..20), (0, 0..515), (2, 0..7)])], None);
    let alone = run_steps(cpu, &[rows(&[(0, 0..515)])], None);
    assert_same_bits(&together[20 * width..535 * width], &alone);
    let mut chunked = run_steps(cpu, &[rows(&[(0, 0..300)]), rows(&[(0, 300..514)])], None);
    chunked.extend(run_steps(
        cpu,
        &[rows(&[(0, 0..514)]), rows(&[(0, 514..515)])],
        None,
    ));
    assert_same_bits(&chunked, &alone[300 * width..]);
}

#[test]
fn damaged_batches_are_refused() {
    let cpu = Cpu::new();
    let mut kv = cpu.kv_cache(LAYOUT).unwrap();
    let mut buffer = cpu.buffer(WIDTH).unwrap();
    let beyond = rows(&[(0, 960..961)]);
    assert!(
        cpu.rope_append(&mut buffer, 5, &beyond, THETA, 0, &mut kv)
            .is_err()
    );
    let mut block = rows(&[(0, 0..1)]);
    assert!(
        cpu.rope_append(&mut buffer, 5, &block, THETA, 2, &mut kv)
            .is_err()
    );
    block.batch.tables[0] = vec![200].into();
    assert!(
        cpu.rope_append(&mut buffer, 5, &block, THETA, 0, &mut kv)
            .is_err()
    );
    let mut out = cpu.buffer(120).unwrap();
    let good = rows(&[(0, 0..1)]);
    assert!(
        cpu.attention(&buffer, &good, &KV_HEAD_OF, Some(0), 0, &kv, None, &mut out)
            .is_err()
    );
    assert!(
        cpu.attention(
            &buffer,
            &good,
            &[0, 0, 1, 1, 2],
            None,
            0,
            &kv,
            None,
            &mut out
        )
        .is_err()
    );
    assert!(
        cpu.attention(&buffer, &good, &KV_HEAD_OF, None, 0, &kv, None, &mut out)
            .is_ok()
    );
}
