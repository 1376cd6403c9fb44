//! Attention over the paged cache: the work list is in the plan, partial results in a workspace, or, of one row, with what they are
//! the parts of.

use super::{
    Buffer, Cuda, Element, Kv, Matrix, Rows, Sums,
    ahead::{Ahead, Pieces},
    kernels::Argument,
    kv::HEAD_DIMS,
    mismatch,
    plan::KV_SPLIT,
    step::{KV_BLOCK, RowsArgument},
    want,
};
use crate::{
    Result,
    ops::{KvLayout, StepRows},
};

/// Query heads that may read one K/V head.
const MAX_GROUP: usize = 8;
/// K/V heads of a rank.
const MAX_KV_HEADS: usize = 64;
/// Threads that compute.
const THREADS: usize = 128;
/// K/V blocks of a stage of the ring that bulk copies fill.
const STAGE_BLOCKS: usize = 4;
/// Rows up to which most of them are read in splits.
const FEW_ROWS: usize = 8;

/// A tiling: its kernels' name in `kernels/attention.cu`, stages of its ring, blocks of it that a multiprocessor holds.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    name: &'static str,
    stages: usize,
    blocks: usize,
    /// Whether it leaves partial results to whoever reads the row.
    leaves_partials: bool,
}

const DEEP: Tiling = Tiling {
    name: "attention",
    stages: 6,
    blocks: 2,
    leaves_partials: false,
};
const SHALLOW: Tiling = Tiling {
    name: "attention_few",
    stages: 4,
    blocks: 3,
    leaves_partials: false,
};
/// That of a step's only row, for whose splits, unless it is very long, there are multiprocessors enough.
const ENTIRE: Tiling = Tiling {
    name: "attention_one",
    stages: 8,
    blocks: 1,
    leaves_partials: true,
};

impl Tiling {
    /// The tiling for `rows` rows.
    fn of(rows: usize) -> Self {
        match rows {
            0..=FEW_ROWS => SHALLOW,
            _ => DEEP,
        }
    }

    /// Dynamic shared memory: a stage is the keys, or the values, of its blocks; it has two barriers.
    fn shared(self, dim: usize) -> usize {
        self.stages * (STAGE_BLOCKS * KV_BLOCK * dim * 2 + 16)
    }
}

/// Kernels with dynamic shared memory where there are bulk copies, and how much.
pub(super) fn shared() -> impl Iterator<Item = (String, usize)> {
    [DEEP, SHALLOW, ENTIRE].into_iter().flat_map(|tiling| {
        HEAD_DIMS.map(|dim| (format!("{}_{dim}_bf16", tiling.name), tiling.shared(dim)))
    })
}

/// `struct Attention` of `kernels/walk.cuh`.
#[repr(C)]
struct Attention {
    rows: RowsArgument,
    qkv: u64,
    layer: u64,
    out: u64,
    partials: Partials,
    arrived: u64,
    items: u64,
    first_item: u64,
    kv_heads: i32,
    window: i32,
    scale: f32,
    first_head: [i16; MAX_KV_HEADS + 1],
    ahead: Ahead,
    sums: Sums,
    frequencies: u64,
}

// As the kernels assert it.
const _: () = assert!(size_of::<Attention>() == 328);

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernel's struct.
    unsafe impl super::Argument for super::Attention {}
    // SAFETY: as above.
    unsafe impl super::Argument for super::Partials {}
}

/// Queries, keys and values of a step's rows.
pub(super) enum Queries<'a> {
    /// Queries have been rotated, keys and values appended to the cache.
    Rotated(&'a Buffer),
    /// Neither, by frequencies of this base, of the step's only row.
    OfOneRow(&'a mut Buffer, f64),
}

/// What splits of attention leave to whoever folds them: `struct Partials` of `kernels/partials.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Partials {
    values: u64,
    scales: u64,
    count: u64,
    heads: i32,
    dim: i32,
}

// As the kernels assert it.
const _: () = assert!(size_of::<Partials>() == 32);

impl Partials {
    /// Bytes of what `items` items leave.
    fn bytes(items: usize, heads: usize, dim: usize) -> usize {
        items * heads * (dim + 2) * 4
    }
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
    /// Attention of each row's queries over the cache, to which those of one row are appended first.
    #[expect(
        clippy::too_many_arguments,
        reason = "an attention call has that many inputs"
    )]
    pub(super) fn attend(
        &self,
        queries: Queries<'_>,
        rows: &Rows,
        kv_head_of: &[usize],
        window: Option<usize>,
        layer: usize,
        kv: &Kv,
        ahead: Option<&Matrix>,
        out: &mut Buffer,
    ) -> Result<()> {
        let (op, heads) = ("attention", kv_head_of.len());
        let KvLayout {
            kv_heads, head_dim, ..
        } = kv.layout;
        let width = (heads + 2 * kv_heads) * head_dim;
        let qkv = match &queries {
            Queries::Rotated(qkv) => qkv,
            Queries::OfOneRow(qkv, _) => &**qkv,
        };
        want(op, "qkv", qkv, Element::F32, rows.len() * width)?;
        qkv.check(op)?;
        want(op, "out", out, kv.element, rows.len() * heads * head_dim)?;
        kv.check(op, layer, rows)?;
        out.hold_values();
        if rows.len() * heads == 0 {
            return Ok(());
        }
        // The work list was made for the window of the limits.
        if window != rows.limits().window || window == Some(0) {
            return Err(mismatch(op, format!("window {window:?}")));
        }
        // Where there are bulk copies, one more warp fetches.
        let bulk = self.hopper && kv.element == Element::Bf16;
        let place = qkv.memory.address();
        let (tiling, sums, frequencies) = match queries {
            Queries::OfOneRow(..) if rows.len() != 1 || !bulk => {
                let reason = format!("{} rows to be rotated", rows.len());
                return Err(mismatch(op, reason));
            }
            Queries::OfOneRow(qkv, theta) => {
                let sums = qkv.spend(head_dim);
                (ENTIRE, sums, self.frequencies(theta, head_dim)?)
            }
            Queries::Rotated(_) if bulk => (Tiling::of(rows.len()), Sums::NONE, 0),
            Queries::Rotated(_) => (DEEP, Sums::NONE, 0),
        };
        let blocks = self.multiprocessors * tiling.blocks;
        let ahead = ahead.filter(|_| bulk);
        let layout = rows.layout();
        let items = layout.split_items();
        let workspace = self.workspace(Partials::bytes(items, heads, head_dim))?;
        // What one row leaves to its reader. Reserved at once, since other ranks may wait later.
        let row_items = rows.limits().max_positions.div_ceil(KV_SPLIT).min(items);
        let room = out.room(self, Partials::bytes(row_items, heads, head_dim))?;
        let (values, items) = match tiling.leaves_partials {
            true => (room, row_items),
            false => (workspace, items),
        };
        let partials = Partials {
            values,
            scales: values + (items * heads * head_dim * 4) as u64,
            count: rows.word(layout.item_count()),
            heads: heads as i32,
            dim: head_dim as i32,
        };
        let pieces = ahead.map_or_else(Pieces::default, |weight| {
            Pieces::of(weight, rows.len(), self.multiprocessors)
        });
        let attention = Attention {
            rows: rows.argument(),
            qkv: place,
            layer: kv.layer(layer),
            out: out.memory.address(),
            partials,
            arrived: rows.arrived(),
            items: rows.word(layout.items()),
            first_item: rows.word(layout.first_items()),
            kv_heads: kv_heads as i32,
            window: window.map_or(0, |window| i32::try_from(window).unwrap_or(i32::MAX)),
            scale: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
            first_head: first_heads(kv_head_of, kv_heads)?,
            ahead: pieces.attention,
            sums,
            frequencies,
        };
        let (threads, ring) = match bulk {
            true => (THREADS + 32, tiling.shared(head_dim)),
            false => (THREADS, 0),
        };
        let name = format!("{}_{head_dim}_{}", tiling.name, kv.element.suffix());
        self.launch(
            &name,
            [blocks, 1, 1],
            [threads, 1],
            ring,
            true,
            &[&attention],
        )?;
        out.partials = tiling.leaves_partials.then_some(partials);
        out.ahead = pieces.reader;
        Ok(())
    }

    /// Folds what attention left of one row into `out`.
    pub(super) fn fold(&self, partials: Partials, out: &Buffer) -> Result<()> {
        let blocks = (partials.heads * partials.dim / 4) as usize;
        self.launch(
            "fold_partials",
            [blocks.div_ceil(256), 1, 1],
            [256, 1],
            0,
            true,
            &[&partials, &out.memory.address()],
        )
    }
}
