//! [`TransformerOps`] of CUDA: sizes are checked here, kernels are elsewhere.

use std::{ops::Range, sync::atomic::Ordering};

use super::{
    Buffer, Cuda, Element, Kv, Matrix, RowScales, Rows, Table, Vector,
    attention::Queries,
    kernels::Argument,
    mismatch,
    nccl::NcclCollective,
    need,
    peer::{self, PeerCollective},
    residual::NORM_THREADS,
    want,
};
use crate::{
    Result,
    ops::{
        KvLayout, MatrixPart, Residual, StepLimits, StepPlan, StepRows, StepWork, TransformerOps,
        VocabularyPart,
    },
    parallel::{Collective, Meeting},
    sampling::Drawn,
    schedule::Mode,
};

impl TransformerOps for Cuda {
    type Kv = Kv;
    type Table = Table;
    type Rows = Rows;

    const IN_FLIGHT: usize = 3;

    fn exchange(&self, mut meeting: Meeting<Self>) -> Result<Box<dyn Collective<Self>>> {
        if !self.only_nccl.load(Ordering::Relaxed)
            && let Some(peers) = peer::find(self, &mut meeting)?
        {
            return Ok(Box::new(PeerCollective::new(meeting, peers)));
        }
        Ok(Box::new(NcclCollective::connect(self, meeting)?))
    }

    fn kv_cache(&self, layout: KvLayout) -> Result<Kv> {
        Kv::new(self, layout)
    }

    fn table(&self, parts: &[MatrixPart]) -> Result<Table> {
        Table::new(self, parts)
    }

    fn matrix_in_chunks(&self, parts: &[MatrixPart], chunks: &[Range<usize>]) -> Result<Matrix> {
        Matrix::in_chunks(self, parts, chunks)
    }

    fn gated_matrix(&self, gate: MatrixPart, up: MatrixPart) -> Result<Matrix> {
        Matrix::gated(self, &[gate, up])
    }

    fn activations(&self, len: usize) -> Result<Buffer> {
        Buffer::new(self, len, self.element())
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
        self.embed_rows(table, part, rows, out)
    }

    fn embed_into(
        &self,
        table: &Table,
        part: &VocabularyPart,
        rows: &Rows,
        to: Residual<'_, Self>,
    ) -> Result<()> {
        self.embed_stream(table, part, rows, to)
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
        out.hold_values();
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

    fn residual(&self, delta: Option<&mut Buffer>, to: Residual<'_, Self>) -> Result<()> {
        self.add(delta, to)
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
        self.rope_and_append(qkv, heads, rows, theta, layer, kv)
    }

    fn attention(
        &self,
        qkv: &Buffer,
        rows: &Rows,
        kv_head_of: &[usize],
        window: Option<usize>,
        layer: usize,
        kv: &Kv,
        ahead: Option<&Matrix>,
        out: &mut Buffer,
    ) -> Result<()> {
        let queries = Queries::Rotated(qkv);
        self.attend(queries, rows, kv_head_of, window, layer, kv, ahead, out)
    }

    fn append_and_attend(
        &self,
        qkv: &mut Buffer,
        rows: &Rows,
        kv_head_of: &[usize],
        theta: f64,
        window: Option<usize>,
        layer: usize,
        kv: &mut Kv,
        ahead: Option<&Matrix>,
        out: &mut Buffer,
    ) -> Result<()> {
        if rows.len() != 1 || !self.tiled() {
            self.rope_append(qkv, kv_head_of.len(), rows, theta, layer, kv)?;
            return self.attention(qkv, rows, kv_head_of, window, layer, kv, ahead, out);
        }
        let queries = Queries::OfOneRow(qkv, theta);
        self.attend(queries, rows, kv_head_of, window, layer, kv, ahead, out)
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
        if gate_up.scales != RowScales::NONE || gate_up.partials.is_some() {
            let reason = "rows of gate_up are yet to be scaled or folded";
            return Err(mismatch("silu_mul", reason.into()));
        }
        out.hold_values();
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

    fn linear_gated(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        width: usize,
        scratch: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<()> {
        if w.is_gated() {
            return self.gated_product(x, rows, w, out);
        }
        self.product(x, rows, w, None, scratch)?;
        self.silu_mul(scratch, rows, width, out)
    }

    fn linear_chunked(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        chunks: &[Range<usize>],
        out: &mut Buffer,
    ) -> Result<()> {
        w.check_chunks(chunks)?;
        self.product(x, rows, w, None, out)
    }

    fn tree_sum(&self, parts: &Buffer, count: usize, len: usize, out: &mut Buffer) -> Result<()> {
        self.sum_parts(parts, count, len, out)
    }

    fn concat_columns(
        &self,
        parts: &Buffer,
        widths: &[usize],
        rows: usize,
        out: &mut Buffer,
    ) -> Result<()> {
        self.join_columns(parts, widths, rows, out)
    }

    fn sample(
        &self,
        logits: &Buffer,
        vocab: Range<u32>,
        suppressed: &[u32],
        mode: Mode,
        rows: &mut Rows,
    ) -> Result<()> {
        self.draw(logits, vocab, suppressed, mode, rows)
    }

    fn read_kv(&self, kv: &Kv, layer: usize, block: u32) -> Result<(Vec<f32>, Vec<f32>)> {
        kv.read(self, layer, block)
    }
}
