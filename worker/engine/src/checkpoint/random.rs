//! Reproducible random weights for any configuration.

use std::{path::Path, sync::Arc};

use rayon::prelude::*;

use super::{DType, HostTensor, tensor::TensorBytes};
use crate::{Error, Result, memory};

/// Odd constant of the Weyl sequence of splitmix64.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
/// 32-bit words that one task fills.
const CHUNK: usize = 1 << 18;

/// Values that are a function of seed, label, tensor name and element index.
#[derive(Debug)]
pub(super) struct Generator {
    key: u64,
    origin: Arc<Path>,
}

impl Generator {
    /// The generator of the model `label`.
    pub fn new(seed: u64, label: &str) -> Self {
        Self {
            key: hash(mix(seed.wrapping_add(GOLDEN_GAMMA)), label),
            origin: Path::new(&format!("random:{seed}")).into(),
        }
    }

    /// A `bf16` tensor, uniform within the bounds that suit `name` and `shape`.
    ///
    /// # Errors
    /// [`Error::Capacity`] if there is no memory for it.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        let key = hash(self.key, name);
        let (centre, radius) = distribution(name, shape);
        let count = shape.iter().copied().try_fold(1, usize::checked_mul);
        let words = count.and_then(|count| memory::zeros::<u32>(count.div_ceil(2)));
        let (Some(count), Some(mut words)) = (count, words) else {
            return Err(Error::Capacity {
                what: "memory for random weights",
                limit: "what the system gives".into(),
                needed: format!("{name} of shape {shape:?}"),
                retry_after: None,
            });
        };
        words
            .par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(chunk, words)| fill(words, chunk * CHUNK, key, centre, radius));
        let bytes = TensorBytes::Owned(words.into(), count * DType::Bf16.size());
        let origin = &self.origin;
        Ok(HostTensor::new(name, origin, DType::Bf16, shape, bytes))
    }
}

/// Writes two elements a word; the first word is number `start` of the tensor, an even number.
fn fill(words: &mut [u32], start: usize, key: u64, centre: f32, radius: f32) {
    let value = |bits: u64| {
        let unit = f32::from(bits as u16 as i16) * (1.0 / 32768.0);
        round_to_bf16(centre + radius * unit)
    };
    for (i, pair) in words.chunks_mut(2).enumerate() {
        let counter = (start / 2 + i) as u64;
        let bits = mix(key.wrapping_add(counter.wrapping_mul(GOLDEN_GAMMA)));
        for (word, bits) in pair.iter_mut().zip([bits, bits >> 32]) {
            *word = value(bits) | value(bits >> 16) << 16;
        }
    }
}

/// Centre and radius of a tensor's uniform distribution, such that activations keep their scale.
fn distribution(name: &str, shape: &[usize]) -> (f32, f32) {
    let uniform = 3f32.sqrt(); // radius of a uniform distribution of standard deviation 1
    match shape {
        [] | [_] if name.ends_with(".weight") => (1.0, 0.1),
        [] | [_] => (0.0, 0.1),
        _ if is_table(name) => (0.0, uniform),
        [_, inputs @ ..] => {
            let fan_in: usize = inputs.iter().product();
            (0.0, uniform / (fan_in.max(1) as f32).sqrt())
        }
    }
}

/// Whether rows of the tensor are looked up rather than multiplied.
fn is_table(name: &str) -> bool {
    let path = name.strip_suffix(".weight").unwrap_or(name);
    let module = path.rsplit('.').next().unwrap_or(path);
    ["embed_tokens", "embedding", "pos_embed", "shared"]
        .iter()
        .any(|table| module.ends_with(table))
}

/// The bits of the nearest `bf16`, ties to even; `value` is finite.
fn round_to_bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    (bits + 0x7fff + (bits >> 16 & 1)) >> 16
}

/// FNV-1a over `text`, started from `key` and finished with [`mix`].
fn hash(key: u64, text: &str) -> u64 {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(text.bytes().fold(key ^ 0xcbf2_9ce4_8422_2325, step))
}

/// The output function of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests;
