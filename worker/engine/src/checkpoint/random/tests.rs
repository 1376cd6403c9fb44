use super::*;

fn moments(values: &[f32]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
    let square = values.iter().map(|v| (f64::from(*v) - mean).powi(2));
    (mean, (square.sum::<f64>() / count).sqrt())
}

#[test]
fn a_value_depends_on_seed_label_name_and_index_only() {
    let first = Generator::new(1, "backbone")
        .tensor("a", &[300, 2000])
        .unwrap()
        .to_f32();
    let again = Generator::new(1, "backbone")
        .tensor("a", &[600, 1000])
        .unwrap()
        .to_f32();
    let scale = (2.0f32).sqrt();
    for (a, b) in first.iter().zip(&again) {
        assert!((a * scale - b).abs() <= 0.01 * b.abs(), "{a} {b}");
    }
    for other in [
        Generator::new(2, "backbone")
            .tensor("a", &[300, 2000])
            .unwrap(),
        Generator::new(1, "vae").tensor("a", &[300, 2000]).unwrap(),
        Generator::new(1, "backbone")
            .tensor("b", &[300, 2000])
            .unwrap(),
    ] {
        assert_ne!(first, other.to_f32());
    }
    let shorter = Generator::new(1, "backbone")
        .tensor("a", &[1, 2000])
        .unwrap()
        .to_f32();
    assert_eq!(first[..2000], shorter);
}

#[test]
fn scales_suit_the_use() {
    let generator = Generator::new(7, "model");
    for (name, shape, mean, deviation) in [
        ("mlp.up_proj.weight", &[512, 400][..], 0.0, 0.05),
        ("conv.weight", &[64, 100, 2, 2], 0.0, 0.05),
        ("x_embedder.weight", &[512, 400], 0.0, 0.05),
        ("model.lm_embed_tokens.weight", &[512, 400], 0.0, 1.0),
        ("quantize.embedding.weight", &[512, 400], 0.0, 1.0),
        ("norm.weight", &[100_000], 1.0, 0.0577),
        ("q_proj.bias", &[100_001], 0.0, 0.0577),
    ] {
        let tensor = generator.tensor(name, shape).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (DType::Bf16, shape));
        assert_eq!(tensor.first_non_finite(), None);
        let (found, spread) = moments(&tensor.to_f32());
        assert!(
            (found - mean).abs() < 0.01 * f64::max(deviation, 0.1),
            "{name} {found}"
        );
        assert!((spread / deviation - 1.0).abs() < 0.02, "{name} {spread}");
    }
}

#[test]
fn values_stay_what_they_are() {
    let tensor = Generator::new(0, "model").tensor("a.bias", &[6]).unwrap();
    let words: Vec<u16> = tensor
        .elements::<half::bf16>()
        .unwrap()
        .iter()
        .map(|value| value.to_bits())
        .collect();
    assert_eq!(words, PINNED);
}

/// Stored results of `--weights random:0` runs rest on these.
const PINNED: &[u16] = &[15730, 15802, 15765, 48470, 15622, 48445];

#[test]
fn sizes_without_memory_are_refused() {
    let generator = Generator::new(0, "model");
    for shape in [&[usize::MAX, 2][..], &[1 << 62]] {
        let refused = generator.tensor("a.weight", shape);
        assert!(matches!(refused, Err(Error::Capacity { .. })));
    }
}
