//! [`TransformerOps`] of CUDA: sizes are checked here, kernels are elsewhere.

use std::ops::Range;

use super::{
    Buffer, Cuda, Element, Matrix, Rows, Table, Vector,
    driver::Memory,
    kernels::Argument,
    lock, mismatch, need,
    step::{KV_BLOCK, RowsArgument},
};
use crate::{
    Error, Result,
    ops::{
        Device, KvLayout, MatrixPart, StepLimits, StepPlan, StepRows, StepWork, TransformerOps,
        VocabularyPart,
    },
    sampling::Drawn,
    schedule::Mode,
};

/// Threads of a norm's block.
const NORM_THREADS: usize = 512;
/// Query heads that may read one K/V head.
const MAX_GROUP: usize = 8;
/// K/V heads of a rank.
const MAX_KV_HEADS: usize = 64;
/// Channels a head that there are kernels for.
const HEAD_DIMS: [usize; 4] = [16, 32, 64, 128];
/// Entries that may be suppressed.
const MAX_SUPPRESSED: usize = 16;
/// Blocks of the attention kernel that a multiprocessor holds.
const ATTENTION_BLOCKS: usize = 2;

/// The paged K/V cache of all layers on the device.
#[derive(Debug)]
pub struct Kv {
    layout: KvLayout,
    memory: Memory,
    element: Element,
}

impl Kv {
    fn block_bytes(&self) -> usize {
        self.layout.kv_heads * 2 * KV_BLOCK * self.layout.head_dim * self.element.size()
    }

    fn layer(&self, layer: usize) -> u64 {
        self.memory.address() + (layer * self.layout.blocks * self.block_bytes()) as u64
    }

    /// Bytes of a position in all layers.
    pub fn position_bytes(&self) -> usize {
        self.layout.layers * self.block_bytes() / KV_BLOCK
    }

    /// Fills the cache with noise, so that what is timed does not read zeros.
    ///
    /// # Errors
    /// [`Error::GroupLost`] with what the driver says.
    pub fn fill(&self, cuda: &Cuda) -> Result<()> {
        // Sixteen bits of sign, an exponent near that of one, and a mantissa: such values in bf16, and in f32.
        let word = |i: u32| i.wrapping_mul(0x9e37_79b9) & 0x80ff_80ff | 0x3f00_3f00;
        let noise: Vec<u32> = (1..1 << 22).map(word).collect();
        for offset in (0..self.memory.bytes() / 4 * 4).step_by(noise.len() * 4) {
            let len = noise.len().min((self.memory.bytes() - offset) / 4);
            cuda.stream.upload(&noise[..len], &self.memory, offset)?;
        }
        cuda.stream.wait()
    }

    fn check(&self, op: &str, layer: usize, rows: &Rows) -> Result<()> {
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

/// `struct Vocabulary` of `kernels/step.cu`.
#[repr(C)]
struct Vocabulary {
    text_first: i32,
    text_len: i32,
    image_first: i32,
    image_len: i32,
}

/// `struct Attention` of `kernels/attention.cu`.
#[repr(C)]
struct Attention {
    rows: RowsArgument,
    qkv: u64,
    layer: u64,
    out: u64,
    partials: u64,
    partial_scales: u64,
    item_count: u64,
    items: u64,
    first_item: u64,
    heads: i32,
    kv_heads: i32,
    window: i32,
    scale: f32,
    first_head: [i16; MAX_KV_HEADS + 1],
}

/// `struct Sampling` of `kernels/sample.cu`.
#[repr(C)]
struct Sampling {
    draws: u64,
    logits: u64,
    vocab: i32,
    first_id: i32,
    suppressed_count: i32,
    suppressed: [i32; MAX_SUPPRESSED],
    last_tokens: u64,
    drawn: u64,
    count: u64,
    ring_len: i32,
    max_drawn: i32,
    staged: i32,
}

#[allow(unsafe_code)]
mod layouts {
    // SAFETY: fields and order are those of the kernels' structs.
    unsafe impl super::Argument for super::Vocabulary {}
    // SAFETY: as above.
    unsafe impl super::Argument for super::Attention {}
    // SAFETY: as above.
    unsafe impl super::Argument for super::Sampling {}
}

fn want(op: &str, what: &str, buffer: &Buffer, element: Element, len: usize) -> Result<()> {
    if buffer.element != element {
        return Err(mismatch(
            op,
            format!("{what} is {:?}, not {element:?}", buffer.element),
        ));
    }
    need(op, what, buffer.len, len)
}

/// First query head of each K/V head.
fn first_heads(kv_head_of: &[usize], kv_heads: usize) -> Result<[i16; MAX_KV_HEADS + 1]> {
    let mut first = [0; MAX_KV_HEADS + 1];
    let groups = (0..kv_heads).map(|head| kv_head_of.iter().filter(|&&of| of == head).count());
    let ascending = kv_head_of.is_sorted() && kv_head_of.iter().all(|&head| head < kv_heads);
    let largest = groups.clone().max().unwrap_or(0);
    if kv_heads > MAX_KV_HEADS || largest > MAX_GROUP || !ascending {
        return Err(mismatch(
            "attention",
            format!(
                "heads {kv_head_of:?} of {kv_heads}: at most {MAX_GROUP} in a row for each of {MAX_KV_HEADS}"
            ),
        ));
    }
    let mut heads = 0;
    for (head, group) in groups.enumerate() {
        heads += group as i16;
        first[head + 1] = heads;
    }
    Ok(first)
}

impl Cuda {
    /// `theta^(-2j/d)` for `j` in `0..d/2` on the device, each step rounded to `f32`.
    fn frequencies(&self, theta: f64, dim: usize) -> Result<u64> {
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

    #[expect(clippy::too_many_arguments, reason = "a norm with its addition")]
    fn residual_norm(
        &self,
        h: &Buffer,
        delta: Option<(&Buffer, bool)>,
        rows: &Rows,
        weight: u64,
        eps: f32,
        width: usize,
        out: Option<&Buffer>,
    ) -> Result<()> {
        let (op, len) = ("residual_rms_norm", rows.len() * width);
        want(op, "h", h, Element::F32, len)?;
        if let Some((delta, _)) = delta {
            want(op, "delta", delta, Element::F32, len)?;
        }
        let suffix = match out {
            Some(out) => {
                need(op, "out", out.len, len)?;
                out.element.suffix()
            }
            None => Element::F32.suffix(),
        };
        let arguments: [&dyn Argument; 8] = [
            &rows.argument(),
            &h.memory.address(),
            &delta.map_or(0, |(delta, _)| delta.memory.address()),
            &i32::from(delta.is_some_and(|(_, multimodal_only)| multimodal_only)),
            &weight,
            &eps,
            &(width as i32),
            &out.map_or(0, |out| out.memory.address()),
        ];
        let name = format!("residual_norm_{suffix}");
        self.launch(
            &name,
            [rows.len(), 1, 1],
            [NORM_THREADS, 1],
            0,
            true,
            &arguments,
        )
    }
}

impl TransformerOps for Cuda {
    type Kv = Kv;
    type Table = Table;
    type Rows = Rows;

    const IN_FLIGHT: usize = 3;

    fn kv_cache(&self, layout: KvLayout) -> Result<Kv> {
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
        let element = self.element();
        let values = 2 * layers * kv_heads.max(1) * head_dim * blocks * KV_BLOCK;
        let memory = Memory::new(&self.context, values * element.size(), "keys and values")?;
        self.stream.zero(&memory)?;
        Ok(Kv {
            layout,
            memory,
            element,
        })
    }

    fn table(&self, parts: &[MatrixPart]) -> Result<Table> {
        Table::new(self, parts)
    }

    fn matrix_in_chunks(&self, part: &MatrixPart, chunks: &[Range<usize>]) -> Result<Matrix> {
        Matrix::in_chunks(self, part, chunks)
    }

    fn activations(&self, len: usize) -> Result<Buffer> {
        self.typed(len, self.element())
    }

    fn rows(&self, limits: &StepLimits) -> Result<Rows> {
        // Whoever wants rows has all weights.
        self.finish_loading()?;
        Rows::new(self, limits)
    }

    fn begin(&self, plan: &StepPlan, rows: &mut Rows) -> Result<()> {
        rows.begin(self, plan)
    }

    fn run(&self, rows: &mut Rows, replayable: bool, work: &mut StepWork<'_, Rows>) -> Result<()> {
        rows.run(self, replayable, work)
    }

    fn drawn(&self, rows: &mut Rows) -> Result<Vec<Option<Drawn>>> {
        rows.collect()
    }

    fn forget(&self, rows: &mut Rows) -> Result<()> {
        rows.forget(self)
    }

    fn embed(
        &self,
        table: &Table,
        part: &VocabularyPart,
        rows: &Rows,
        out: &mut Buffer,
    ) -> Result<()> {
        want("embed", "out", out, Element::F32, rows.len() * table.width)?;
        let vocabulary = Vocabulary {
            text_first: part.text.start as i32,
            text_len: part.text.len() as i32,
            image_first: part.multimodal.start as i32,
            image_len: part.multimodal.len() as i32,
        };
        let arguments: [&dyn Argument; 5] = [
            &rows.argument(),
            &table.memory.address(),
            &vocabulary,
            &(table.width as i32),
            &out.memory.address(),
        ];
        let name = format!("embed_{}", table.element.suffix());
        self.launch(&name, [rows.len(), 1, 1], [256, 1], 0, true, &arguments)
    }

    fn final_norm(
        &self,
        h: &Buffer,
        weights: (&Vector, &Vector),
        rows: &Rows,
        mode: Mode,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<()> {
        let (op, width, picked) = ("final_norm", weights.0.len, rows.picked(mode));
        want(op, "h", h, Element::F32, rows.len() * width)?;
        need(op, "out", out.len, picked * width)?;
        need(op, "second weight", weights.1.len, width)?;
        let arguments: [&dyn Argument; 8] = [
            &rows.argument(),
            &rows.word(rows.layout().picked(mode)),
            &h.memory.address(),
            &weights.0.memory.address(),
            &weights.1.memory.address(),
            &eps,
            &(width as i32),
            &out.memory.address(),
        ];
        let name = format!("final_norm_{}", out.element.suffix());
        self.launch(
            &name,
            [picked, 1, 1],
            [NORM_THREADS, 1],
            0,
            true,
            &arguments,
        )
    }

    fn residual_rms_norm(
        &self,
        h: &mut Buffer,
        delta: Option<(&Buffer, bool)>,
        rows: &Rows,
        weight: &Vector,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<()> {
        let (address, width) = (weight.memory.address(), weight.len);
        self.residual_norm(h, delta, rows, address, eps, width, Some(out))
    }

    fn residual(
        &self,
        h: &mut Buffer,
        delta: &Buffer,
        rows: &Rows,
        width: usize,
        multimodal_only: bool,
    ) -> Result<()> {
        self.residual_norm(h, Some((delta, multimodal_only)), rows, 0, 0.0, width, None)
    }

    fn rope_append(
        &self,
        qkv: &mut Buffer,
        heads: usize,
        rows: &Rows,
        theta: f64,
        layer: usize,
        kv: &mut Kv,
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
        let arguments: [&dyn Argument; 7] = [
            &rows.argument(),
            &qkv.memory.address(),
            &(heads as i32),
            &(kv_heads as i32),
            &(head_dim as i32),
            &self.frequencies(theta, head_dim)?,
            &kv.layer(layer),
        ];
        let name = format!("rope_append_{}", kv.element.suffix());
        self.launch(
            &name,
            [rows.len(), all, 1],
            [head_dim / 2, 1],
            0,
            true,
            &arguments,
        )
    }

    fn attention(
        &self,
        qkv: &Buffer,
        rows: &Rows,
        kv_head_of: &[usize],
        window: Option<usize>,
        layer: usize,
        kv: &Kv,
        out: &mut Buffer,
    ) -> Result<()> {
        let (op, heads) = ("attention", kv_head_of.len());
        let KvLayout {
            kv_heads, head_dim, ..
        } = kv.layout;
        let width = (heads + 2 * kv_heads) * head_dim;
        want(op, "qkv", qkv, Element::F32, rows.len() * width)?;
        want(op, "out", out, kv.element, rows.len() * heads * head_dim)?;
        kv.check(op, layer, rows)?;
        // The work list was made for the window of the limits.
        if window != rows.limits().window || window == Some(0) {
            return Err(mismatch(op, format!("window {window:?}")));
        }
        let layout = rows.layout();
        let partials = layout.split_items() * heads;
        let workspace = self.workspace(partials * (head_dim + 2) * 4)?;
        let attention = Attention {
            rows: rows.argument(),
            qkv: qkv.memory.address(),
            layer: kv.layer(layer),
            out: out.memory.address(),
            partials: workspace,
            partial_scales: workspace + (partials * head_dim * 4) as u64,
            item_count: rows.word(layout.item_count()),
            items: rows.word(layout.items()),
            first_item: rows.word(layout.first_items()),
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            window: window.map_or(0, |window| i32::try_from(window).unwrap_or(i32::MAX)),
            scale: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
            first_head: first_heads(kv_head_of, kv_heads)?,
        };
        let suffix = kv.element.suffix();
        let blocks = self.multiprocessors * ATTENTION_BLOCKS;
        let name = format!("attention_{head_dim}_{suffix}");
        self.launch(&name, [blocks, 1, 1], [128, 1], 0, true, &[&attention])?;
        let name = format!("attention_merge_{suffix}");
        let grid = [rows.len(), heads, 1];
        self.launch(&name, grid, [head_dim, 1], 0, true, &[&attention])
    }

    fn silu_mul(
        &self,
        gate_up: &Buffer,
        rows: usize,
        width: usize,
        out: &mut Buffer,
    ) -> Result<()> {
        let element = out.element;
        want("silu_mul", "gate_up", gate_up, element, 2 * rows * width)?;
        need("silu_mul", "out", out.len, rows * width)?;
        let arguments: [&dyn Argument; 4] = [
            &gate_up.memory.address(),
            &(rows as i32),
            &(width as i32),
            &out.memory.address(),
        ];
        let (name, values) = match (element, width.is_multiple_of(8)) {
            (Element::F32, _) => ("silu_mul_f32", 1),
            (Element::Bf16, true) => ("silu_mul_bf16", 8),
            (Element::Bf16, false) => ("silu_mul_odd_bf16", 1),
        };
        let grid = [self.blocks(rows * width / values), 1, 1];
        self.launch(name, grid, [256, 1], 0, true, &arguments)
    }

    fn linear_chunked(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        chunks: &[Range<usize>],
        out: &mut Buffer,
    ) -> Result<()> {
        if !w.has_chunks(chunks) {
            return Err(mismatch(
                "linear_chunked",
                format!("the weight was not made for chunks {chunks:?}"),
            ));
        }
        self.product(x, rows, w, None, out)
    }

    fn tree_sum(&self, parts: &[Buffer], len: usize, out: &mut Buffer) -> Result<()> {
        want("tree_sum", "out", out, Element::F32, len)?;
        for part in parts {
            want("tree_sum", "part", part, Element::F32, len)?;
        }
        if !parts.len().is_power_of_two() {
            return Err(mismatch("tree_sum", format!("{} parts", parts.len())));
        }
        if let [only] = parts {
            return self.stream.copy(&only.memory, 0, &out.memory, 0, len * 4);
        }
        // Sums of neighbours, level by level, into the left one's place in the workspace.
        let workspace = self.workspace(parts.len() / 2 * len * 4)?;
        let place = |index: usize| workspace + (index * len * 4) as u64;
        let mut level: Vec<u64> = parts.iter().map(|part| part.memory.address()).collect();
        while level.len() > 1 {
            let last = level.len() == 2;
            for pair in 0..level.len() / 2 {
                let to = if last {
                    out.memory.address()
                } else {
                    place(pair)
                };
                let arguments: [&dyn Argument; 4] =
                    [&level[2 * pair], &level[2 * pair + 1], &(len as i32), &to];
                self.launch(
                    "add",
                    [self.blocks(len), 1, 1],
                    [256, 1],
                    0,
                    true,
                    &arguments,
                )?;
                level[pair] = to;
            }
            level.truncate(level.len() / 2);
        }
        Ok(())
    }

    fn concat_columns(
        &self,
        parts: &[Buffer],
        widths: &[usize],
        rows: usize,
        out: &mut Buffer,
    ) -> Result<()> {
        let width: usize = widths.iter().sum();
        want("concat_columns", "out", out, Element::F32, rows * width)?;
        need("concat_columns", "parts", parts.len(), widths.len())?;
        let mut column = 0;
        for (part, &part_width) in parts.iter().zip(widths) {
            want(
                "concat_columns",
                "part",
                part,
                Element::F32,
                rows * part_width,
            )?;
            for row in 0..rows {
                let (from, to) = (row * part_width * 4, (row * width + column) * 4);
                self.stream
                    .copy(&part.memory, from, &out.memory, to, part_width * 4)?;
            }
            column += part_width;
        }
        Ok(())
    }

    fn sample(
        &self,
        logits: &Buffer,
        vocab: Range<u32>,
        suppressed: &[u32],
        mode: Mode,
        rows: &mut Rows,
    ) -> Result<()> {
        let (len, picked) = (vocab.len(), rows.picked(mode));
        want("sample", "logits", logits, Element::F32, picked * len)?;
        if suppressed.len() > MAX_SUPPRESSED {
            let reason = format!("{} suppressed; at most {MAX_SUPPRESSED}", suppressed.len());
            return Err(mismatch("sample", reason));
        }
        let (last_tokens, drawn, count, ring_len, max_drawn) = rows.sampling();
        let staged = len * 4 <= self.kernels.sample_shared();
        let mut sampling = Sampling {
            draws: rows.word(rows.layout().draws(mode)),
            logits: logits.memory.address(),
            vocab: len as i32,
            first_id: vocab.start as i32,
            suppressed_count: suppressed.len() as i32,
            suppressed: [0; MAX_SUPPRESSED],
            last_tokens,
            drawn,
            count,
            ring_len,
            max_drawn,
            staged: i32::from(staged),
        };
        for (to, &from) in sampling.suppressed.iter_mut().zip(suppressed) {
            *to = from as i32;
        }
        let shared = if staged { len * 4 } else { 0 };
        self.launch(
            "sample",
            [picked, 1, 1],
            [1024, 1],
            shared,
            true,
            &[&sampling],
        )
    }

    fn read_kv(&self, kv: &Kv, layer: usize, block: u32) -> Result<(Vec<f32>, Vec<f32>)> {
        let KvLayout {
            layers,
            kv_heads,
            head_dim,
            blocks,
            ..
        } = kv.layout;
        if layer >= layers || block as usize >= blocks {
            return Err(mismatch("read_kv", format!("layer {layer}, block {block}")));
        }
        let len = kv_heads * KV_BLOCK * head_dim;
        let (keys, values) = (self.buffer(len)?, self.buffer(len)?);
        let arguments: [&dyn Argument; 5] = [
            &(kv.layer(layer) + (block as usize * kv.block_bytes()) as u64),
            &(kv_heads as i32),
            &(head_dim as i32),
            &keys.memory.address(),
            &values.memory.address(),
        ];
        let name = format!("read_kv_{}", kv.element.suffix());
        self.launch(&name, [kv_heads, 1, 1], [256, 1], 0, false, &arguments)?;
        Ok((self.download(&keys)?, self.download(&values)?))
    }
}
