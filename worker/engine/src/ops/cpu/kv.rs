//! The paged K/V cache and the rotary embedding of what goes into it.

use super::{RowBatch, lanes::LANES, math, threads};
use crate::{Error, Result, memory, ops::KvLayout};

/// Keys and values of all layers, each `[layer, block, kv_head, slot, channel]`.
#[derive(Debug)]
pub struct Kv {
    pub(super) layout: KvLayout,
    keys: Pool,
    values: Pool,
}

/// Values from a cache-line address on. Memory is committed as it is written.
#[derive(Debug)]
struct Pool {
    memory: Vec<f32>,
    first: usize,
}

impl Pool {
    /// Room for `len` values; `None` if the system has none.
    fn new(len: usize) -> Option<Self> {
        let memory = memory::zeros::<f32>(len.checked_add(LANES)?)?;
        let first = memory.as_ptr().align_offset(LANES * size_of::<f32>());
        Some(Self {
            memory,
            first: if first <= LANES { first } else { 0 },
        })
    }

    fn get(&self, at: usize, len: usize) -> &[f32] {
        &self.memory[self.first + at..][..len]
    }

    fn set(&mut self, at: usize, values: &[f32]) {
        self.memory[self.first + at..][..values.len()].copy_from_slice(values);
    }
}

/// A place in the cache: the first channel of one position of one head.
#[derive(Clone, Copy)]
pub(super) struct Place(usize);

impl Kv {
    /// Room for `layout`.
    ///
    /// # Errors
    /// [`Error::Capacity`] if the system has none.
    pub(super) fn new(layout: KvLayout) -> Result<Self> {
        let KvLayout {
            layers,
            kv_heads,
            head_dim,
            blocks,
            block_size,
        } = layout;
        let pool = || {
            [kv_heads, head_dim, blocks, block_size]
                .into_iter()
                .try_fold(layers, usize::checked_mul)
                .and_then(Pool::new)
                .ok_or_else(|| Error::Capacity {
                    what: "memory for keys and values",
                    limit: "what the system gives".into(),
                    needed: format!(
                        "{blocks} blocks of {block_size} positions, \
                         {layers} layers of {kv_heads} heads of {head_dim}"
                    ),
                    retry_after: None,
                })
        };
        Ok(Self {
            layout,
            keys: pool()?,
            values: pool()?,
        })
    }

    /// Fills the cache with noise between -1 and 1.
    pub(crate) fn fill(&mut self) {
        let noise =
            |i: usize| ((i as u32).wrapping_mul(0x9e37_79b9) as i32) as f32 * 2f32.powi(-31);
        for pool in [&mut self.keys, &mut self.values] {
            let values = pool.memory.iter_mut().enumerate();
            values.for_each(|(i, value)| *value = noise(i + 1));
        }
    }

    /// Where slot 0 of `block` starts, for a head of a layer.
    pub(super) fn block(&self, layer: usize, block: u32, kv_head: usize) -> Place {
        let KvLayout {
            blocks,
            kv_heads,
            block_size,
            head_dim,
            ..
        } = self.layout;
        Place(((layer * blocks + block as usize) * kv_heads + kv_head) * block_size * head_dim)
    }

    /// `slots` keys from `place` on.
    pub(super) fn keys(&self, place: Place, slots: usize) -> &[f32] {
        self.keys.get(place.0, slots * self.layout.head_dim)
    }

    /// `slots` values from `place` on.
    pub(super) fn values(&self, place: Place, slots: usize) -> &[f32] {
        self.values.get(place.0, slots * self.layout.head_dim)
    }

    /// Keys and values of a block of a layer, `[kv_head, slot, channel]`.
    pub(super) fn read(&self, layer: usize, block: u32) -> (Vec<f32>, Vec<f32>) {
        let at = self.block(layer, block, 0);
        let slots = self.layout.kv_heads * self.layout.block_size;
        (
            self.keys(at, slots).to_vec(),
            self.values(at, slots).to_vec(),
        )
    }

    /// Stores the key and value heads of one row.
    fn store(&mut self, layer: usize, block: u32, slot: usize, keys: &[f32], values: &[f32]) {
        let dim = self.layout.head_dim;
        let heads = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
        for (head, (key, value)) in heads.enumerate() {
            let at = self.block(layer, block, head).0 + slot * dim;
            self.keys.set(at, key);
            self.values.set(at, value);
        }
    }

    /// Whether every row of `rows` has blocks of this cache up to its position.
    pub(super) fn check(&self, layer: usize, rows: &RowBatch) -> Result<()> {
        let damaged = |reason: String| Error::Unsupported {
            what: "row batch".into(),
            reason,
        };
        if layer >= self.layout.layers {
            return Err(damaged(format!("layer {layer} of {}", self.layout.layers)));
        }
        if rows.positions.len() != rows.len() || rows.tables_index.len() != rows.len() {
            return Err(damaged("its arrays differ in length".into()));
        }
        for (&position, &sequence) in rows.positions.iter().zip(&rows.tables_index) {
            let needed = position as usize / self.layout.block_size + 1;
            let blocks = rows
                .tables
                .get(sequence as usize)
                .and_then(|table| table.get(..needed))
                .ok_or_else(|| damaged(format!("position {position} has no block")))?;
            if blocks
                .iter()
                .any(|&block| block as usize >= self.layout.blocks)
            {
                return Err(damaged(format!("a block beyond {}", self.layout.blocks)));
            }
        }
        Ok(())
    }

    /// Rotates the queries and keys of `qkv` and stores keys and values. Sizes are checked.
    pub(super) fn rope_append(
        &mut self,
        qkv: &mut [f32],
        heads: usize,
        rows: &RowBatch,
        theta: f64,
        layer: usize,
    ) {
        let KvLayout {
            kv_heads,
            head_dim,
            block_size,
            ..
        } = self.layout;
        let width = (heads + 2 * kv_heads) * head_dim;
        let frequencies = frequencies(theta, head_dim);
        let work = qkv.len() * 8;
        threads::for_each_chunk(qkv, width, work, |r, row| {
            let position = rows.positions[r] as f32;
            let turns: Vec<_> = frequencies
                .iter()
                .map(|frequency| math::sin_cos(position * frequency))
                .collect();
            for head in row[..(heads + kv_heads) * head_dim].chunks_exact_mut(head_dim) {
                let (first, second) = head.split_at_mut(head_dim / 2);
                for ((a, b), (sin, cos)) in first.iter_mut().zip(second).zip(&turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        });
        for (r, row) in qkv.chunks_exact(width).enumerate() {
            let position = rows.positions[r] as usize;
            let block = rows.tables[rows.tables_index[r] as usize][position / block_size];
            let (keys, values) = row[heads * head_dim..].split_at(kv_heads * head_dim);
            self.store(layer, block, position % block_size, keys, values);
        }
    }
}

/// `theta^(-2j/d)` for `j` in `0..d/2`, each step rounded to `f32`.
fn frequencies(theta: f64, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|j| {
            let exponent = f64::from(2.0 * j as f32 / head_dim as f32);
            1.0 / libm::pow(theta, exponent) as f32
        })
        .collect()
}
