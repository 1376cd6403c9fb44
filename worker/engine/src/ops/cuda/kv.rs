//! The paged K/V cache and the rotary embedding of what goes into it.

use super::{
    Buffer, Cuda, Element, Rows, driver::Memory, kernels::Argument, lock, mismatch, step::KV_BLOCK,
    want,
};
use crate::{
    Error, Result,
    ops::{Device, KvLayout, StepRows},
};

/// Channels a head that there are kernels for.
pub(super) const HEAD_DIMS: [usize; 4] = [16, 32, 64, 128];

/// Values that a thread of the rotary embedding has, and threads of its block.
const ROPE_VALUES: usize = 8;
const ROPE_THREADS: usize = 512;

/// The paged K/V cache of all layers on the device.
#[derive(Debug)]
pub struct Kv {
    pub(super) layout: KvLayout,
    memory: Memory,
    pub(super) element: Element,
}

impl Kv {
    /// Room for `layout`.
    pub(super) fn new(cuda: &Cuda, layout: KvLayout) -> Result<Self> {
        let KvLayout {
            layers,
            kv_heads,
            head_dim,
            blocks,
            block_size,
        } = layout;
        if block_size != KV_BLOCK || !HEAD_DIMS.contains(&head_dim) {
            return Err(Error::Unsupported {
                what: format!("K/V blocks of {block_size} positions, heads of {head_dim} channels"),
                reason: format!("on CUDA blocks have {KV_BLOCK}, heads one of {HEAD_DIMS:?}"),
            });
        }
        let element = cuda.element();
        let values = 2 * layers * kv_heads.max(1) * head_dim * blocks * KV_BLOCK;
        let memory = Memory::new(&cuda.context, values * element.size(), "keys and values")?;
        cuda.stream.zero(&memory)?;
        Ok(Self {
            layout,
            memory,
            element,
        })
    }

    /// Keys and values of one block of one layer, each `[kv_heads, 16, head_dim]`.
    pub(super) fn read(
        &self,
        cuda: &Cuda,
        layer: usize,
        block: u32,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let KvLayout {
            layers,
            kv_heads,
            head_dim,
            blocks,
            ..
        } = self.layout;
        if layer >= layers || block as usize >= blocks {
            return Err(mismatch("read_kv", format!("layer {layer}, block {block}")));
        }
        let len = kv_heads * KV_BLOCK * head_dim;
        let (keys, values) = (cuda.buffer(len)?, cuda.buffer(len)?);
        let arguments: [&dyn Argument; 5] = [
            &(self.layer(layer) + (block as usize * self.block_bytes()) as u64),
            &(kv_heads as i32),
            &(head_dim as i32),
            &keys.memory.address(),
            &values.memory.address(),
        ];
        let name = format!("read_kv_{}", self.element.suffix());
        cuda.launch(&name, [kv_heads, 1, 1], [256, 1], 0, false, &arguments)?;
        Ok((cuda.download(&keys)?, cuda.download(&values)?))
    }

    fn block_bytes(&self) -> usize {
        self.layout.kv_heads * 2 * KV_BLOCK * self.layout.head_dim * self.element.size()
    }

    pub(super) fn layer(&self, layer: usize) -> u64 {
        self.memory.address() + (layer * self.layout.blocks * self.block_bytes()) as u64
    }

    /// Fills the cache with noise, so that what is timed does not read zeros.
    ///
    /// # Errors
    /// [`Error::GroupLost`] with what the driver says.
    pub fn fill(&self, cuda: &Cuda) -> Result<()> {
        // Sixteen bits of sign, an exponent near that of one, and a mantissa: such values in bf16, and in f32.
        let word = |i: u32| i.wrapping_mul(0x9e37_79b9) & 0x80ff_80ff | 0x3f00_3f00;
        let noise: Vec<u32> = (1..1 << 22).map(word).collect();
        let (memory, all) = (&self.memory, self.memory.bytes());
        let mut filled = all.min(size_of_val(&noise[..]));
        cuda.stream.upload(&noise[..filled / 4], memory, 0)?;
        while filled < all {
            let bytes = filled.min(all - filled);
            cuda.stream.copy(memory, 0, memory, filled, bytes)?;
            filled += bytes;
        }
        cuda.stream.wait()
    }

    pub(super) fn check(&self, op: &str, layer: usize, rows: &Rows) -> Result<()> {
        let KvLayout { layers, blocks, .. } = self.layout;
        if layer >= layers || rows.last_block as usize >= blocks {
            let reason = format!(
                "layer {layer} of {layers}, block {} of {blocks}",
                rows.last_block
            );
            return Err(mismatch(op, reason));
        }
        Ok(())
    }
}

impl Cuda {
    /// `theta^(-2j/d)` for `j` in `0..d/2` on the device, each step rounded to `f32`.
    pub(super) fn frequencies(&self, theta: f64, dim: usize) -> Result<u64> {
        let mut known = lock(&self.frequencies);
        let key = (theta.to_bits(), dim);
        if let Some((.., memory)) = known.iter().find(|(t, d, _)| (*t, *d) == key) {
            return Ok(memory.address());
        }
        let values: Vec<f32> = (0..dim / 2)
            .map(|j| {
                let exponent = f64::from(2.0 * j as f32 / dim as f32);
                1.0 / libm::pow(theta, exponent) as f32
            })
            .collect();
        let memory = Memory::new(&self.context, values.len() * 4, "rotary frequencies")?;
        self.stream.upload(&values, &memory, 0)?;
        let address = memory.address();
        known.push((key.0, key.1, memory));
        Ok(address)
    }

    /// Rotates queries and keys and stores keys and values.
    pub(super) fn rope_and_append(
        &self,
        qkv: &mut Buffer,
        heads: usize,
        rows: &Rows,
        theta: f64,
        layer: usize,
        kv: &Kv,
    ) -> Result<()> {
        let KvLayout {
            kv_heads, head_dim, ..
        } = kv.layout;
        let all = heads + 2 * kv_heads;
        want(
            "rope_append",
            "qkv",
            qkv,
            Element::F32,
            rows.len() * all * head_dim,
        )?;
        kv.check("rope_append", layer, rows)?;
        qkv.check("rope_append")?;
        let frequencies = self.frequencies(theta, head_dim)?;
        let sums = qkv.spend(head_dim / 2);
        qkv.hold_values();
        let arguments: [&dyn Argument; 8] = [
            &rows.argument(),
            &sums,
            &qkv.memory.address(),
            &(heads as i32),
            &(kv_heads as i32),
            &(head_dim as i32),
            &frequencies,
            &kv.layer(layer),
        ];
        let name = format!("rope_append_{}", kv.element.suffix());
        let threads = head_dim / ROPE_VALUES;
        let together = all.min(ROPE_THREADS / threads);
        let grid = [rows.len(), all.div_ceil(together), 1];
        self.launch(&name, grid, [threads, together], 0, true, &arguments)
    }
}
