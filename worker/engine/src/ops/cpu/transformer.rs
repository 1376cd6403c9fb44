//! [`TransformerOps`] of the CPU: sizes are checked here, kernels are elsewhere.

use std::ops::Range;

use super::{
    Buffer, Cpu, Kv, Matrix, Rows, linear, mismatch, need,
    norm::{self, Affine},
    pointwise,
    product::add_tree,
    row_attention::RowAttention,
    sample, view,
    view::RowsMut,
};
use crate::{
    Result,
    ops::{
        Device, KvLayout, MatrixPart, Norm, Residual, RmsNorm, StepLimits, StepPlan, StepRows,
        StepWork, TransformerOps, VocabularyPart, column_parts,
    },
    sampling::Drawn,
    schedule::Mode,
};

impl Cpu {
    /// `out[r] = table[ids[r]]`, zeros where `ids[r]` is `None`.
    pub(super) fn embed_ids(
        &self,
        table: &Matrix,
        ids: &[Option<u32>],
        out: &mut Buffer,
    ) -> Result<()> {
        let width = table.cols();
        need("embed", "out", out.0.len(), ids.len() * width)?;
        if let Some(id) = ids
            .iter()
            .flatten()
            .find(|&&id| id as usize >= table.rows())
        {
            return Err(mismatch("embed", format!("id {id} of {}", table.rows())));
        }
        for (r, id) in ids.iter().enumerate() {
            let out = &mut out.0[r * width..][..width];
            match id {
                Some(id) => table.read_row(*id as usize, out),
                None => out.fill(0.0),
            }
        }
        Ok(())
    }

    /// Norms of rows of `x`, with the second weight for rows with `select[r]`.
    pub(super) fn rms_norm_select(
        &self,
        x: &Buffer,
        weights: (&Vec<f32>, &Vec<f32>),
        select: &[bool],
        eps: f32,
        out: &mut Buffer,
    ) -> Result<()> {
        let (width, rows) = (weights.0.len(), select.len());
        need("rms_norm_select", "x", x.0.len(), rows * width)?;
        need("rms_norm_select", "out", out.0.len(), rows * width)?;
        need("rms_norm_select", "second weight", weights.1.len(), width)?;
        let affine = |r: usize| Affine {
            weight: Some(if select[r] {
                &weights.1[..width]
            } else {
                weights.0
            }),
            ..Affine::default()
        };
        norm::rows(
            self.isa,
            Norm::Rms,
            &x.0,
            width,
            affine,
            eps,
            &mut out.0[..rows * width],
        );
        Ok(())
    }

    /// `h[r] += delta[r]` for rows with `update[r]` (all rows if `None`).
    pub(super) fn add_rows(
        &self,
        h: &mut Buffer,
        delta: &Buffer,
        rows: usize,
        width: usize,
        update: Option<&[bool]>,
    ) -> Result<()> {
        need("residual", "h", h.0.len(), rows * width)?;
        need("residual", "delta", delta.0.len(), rows * width)?;
        if let Some(update) = update {
            need("residual", "update", update.len(), rows)?;
        }
        pointwise::add_rows(&mut h.0[..rows * width], &delta.0, width, update);
        Ok(())
    }
}

impl TransformerOps for Cpu {
    type Kv = Kv;
    type Table = Matrix;
    type Rows = Rows;

    const IN_FLIGHT: usize = 1;

    fn kv_cache(&self, layout: KvLayout) -> Result<Kv> {
        Kv::new(layout)
    }

    fn table(&self, parts: &[MatrixPart]) -> Result<Matrix> {
        self.matrix(parts)
    }

    fn matrix_in_chunks(&self, parts: &[MatrixPart], _: &[Range<usize>]) -> Result<Matrix> {
        self.matrix(parts)
    }

    fn activations(&self, len: usize) -> Result<Buffer> {
        self.buffer(len)
    }

    fn rows(&self, limits: &StepLimits) -> Result<Rows> {
        Ok(Rows::new(limits.text_vocab))
    }

    fn begin(&self, plan: &StepPlan, rows: &mut Rows) -> Result<()> {
        rows.begin(plan)
    }

    fn run(&self, rows: &mut Rows, _: bool, work: &mut StepWork<'_, Rows>) -> Result<()> {
        work(rows)
    }

    fn drawn(&self, rows: &mut Rows) -> Result<Vec<Option<Drawn>>> {
        rows.collect()
    }

    fn forget(&self, rows: &mut Rows) -> Result<()> {
        rows.forget();
        Ok(())
    }

    fn embed(
        &self,
        table: &Matrix,
        part: &VocabularyPart,
        rows: &Rows,
        out: &mut Buffer,
    ) -> Result<()> {
        let tokens = rows.batch.tokens.iter();
        let ids: Vec<_> = tokens.map(|&token| part.local_row(token)).collect();
        self.embed_ids(table, &ids, out)
    }

    fn final_norm(
        &self,
        h: &Buffer,
        weights: (&Vec<f32>, &Vec<f32>),
        rows: &Rows,
        mode: Mode,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<()> {
        let (picked, width) = (rows.picked.of(mode), weights.0.len());
        need("final_norm", "h", h.0.len(), rows.len() * width)?;
        if let Some(row) = picked.iter().find(|&&row| row as usize >= rows.len()) {
            return Err(mismatch(
                "final_norm",
                format!("row {row} of {}", rows.len()),
            ));
        }
        let mut selected = self.buffer(picked.len() * width)?;
        for (to, &from) in picked.iter().enumerate() {
            self.copy_rows(h, from as usize, &mut selected, to, 1, width)?;
        }
        let flag = |&row: &u32| rows.batch.multimodal[row as usize];
        let multimodal: Vec<bool> = picked.iter().map(flag).collect();
        self.rms_norm_select(&selected, weights, &multimodal, eps, out)
    }

    fn residual(&self, delta: Option<&mut Buffer>, to: Residual<'_, Self>) -> Result<()> {
        let Residual {
            h,
            rows,
            width,
            multimodal_only,
            norm,
        } = to;
        let (batch, rows) = (&rows.batch, rows.len());
        need("residual", "h", h.0.len(), rows * width)?;
        if let Some(delta) = delta {
            let update = multimodal_only.then_some(&batch.multimodal[..]);
            self.add_rows(h, delta, rows, width, update)?;
        }
        let Some(RmsNorm { weight, eps, out }) = norm else {
            return Ok(());
        };
        need("residual", "weight", weight.len(), width)?;
        need("residual", "out", out.0.len(), rows * width)?;
        let affine = |_| Affine {
            weight: Some(weight),
            ..Affine::default()
        };
        norm::rows(
            self.isa,
            Norm::Rms,
            &h.0,
            width,
            affine,
            eps,
            &mut out.0[..rows * width],
        );
        Ok(())
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
        let rows = &rows.batch;
        let len = rows.len() * (heads + 2 * kv.layout.kv_heads) * kv.layout.head_dim;
        need("rope_append", "qkv", qkv.0.len(), len)?;
        kv.check(layer, rows)?;
        kv.rope_append(&mut qkv.0[..len], heads, rows, theta, layer);
        Ok(())
    }

    fn attention(
        &self,
        qkv: &Buffer,
        rows: &Rows,
        kv_head_of: &[usize],
        window: Option<usize>,
        layer: usize,
        kv: &Kv,
        _ahead: Option<&Matrix>,
        out: &mut Buffer,
    ) -> Result<()> {
        let KvLayout {
            kv_heads, head_dim, ..
        } = kv.layout;
        let (rows, heads) = (&rows.batch, kv_head_of.len());
        need(
            "attention",
            "qkv",
            qkv.0.len(),
            rows.len() * (heads + 2 * kv_heads) * head_dim,
        )?;
        need(
            "attention",
            "out",
            out.0.len(),
            rows.len() * heads * head_dim,
        )?;
        if window == Some(0) || kv_head_of.iter().any(|&head| head >= kv_heads) {
            let reason = format!("window {window:?}, heads {kv_head_of:?} of {kv_heads}");
            return Err(mismatch("attention", reason));
        }
        kv.check(layer, rows)?;
        RowAttention {
            qkv: &qkv.0,
            rows,
            kv_head_of,
            window,
            layer,
            kv,
        }
        .run(self.isa, &mut out.0[..rows.len() * heads * head_dim]);
        Ok(())
    }

    fn silu_mul(
        &self,
        gate_up: &Buffer,
        rows: usize,
        width: usize,
        out: &mut Buffer,
    ) -> Result<()> {
        need("silu_mul", "gate_up", gate_up.0.len(), 2 * rows * width)?;
        need("silu_mul", "out", out.0.len(), rows * width)?;
        pointwise::silu_mul(self.isa, &gate_up.0, width, &mut out.0[..rows * width]);
        Ok(())
    }

    fn linear_chunked(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        chunks: &[Range<usize>],
        out: &mut Buffer,
    ) -> Result<()> {
        let (outs, cols) = (w.rows(), w.cols());
        need("linear_chunked", "x", x.0.len(), rows * cols)?;
        need("linear_chunked", "out", out.0.len(), rows * outs)?;
        if !chunks.len().is_power_of_two()
            || chunks
                .iter()
                .any(|chunk| chunk.start > chunk.end || chunk.end > cols)
        {
            return Err(mismatch(
                "linear_chunked",
                format!("chunks {chunks:?} of {cols}"),
            ));
        }
        let out = RowsMut::new(&mut out.0, outs, rows, outs);
        linear::linear(
            self.isa,
            view::Rows::new(&x.0, cols, rows, cols),
            w,
            chunks,
            None,
            out,
        );
        Ok(())
    }

    fn tree_sum(&self, parts: &Buffer, count: usize, len: usize, out: &mut Buffer) -> Result<()> {
        need("tree_sum", "out", out.0.len(), len)?;
        need("tree_sum", "parts", parts.0.len(), count * len)?;
        if !count.is_power_of_two() {
            return Err(mismatch("tree_sum", format!("{count} parts")));
        }
        let mut values = parts.0[..count * len].to_vec();
        add_tree(&mut values, len, count);
        out.0[..len].copy_from_slice(&values[..len]);
        Ok(())
    }

    fn concat_columns(
        &self,
        parts: &Buffer,
        widths: &[usize],
        rows: usize,
        out: &mut Buffer,
    ) -> Result<()> {
        let uneven = || mismatch("concat_columns", format!("parts of widths {widths:?}"));
        let (width, each) = column_parts(widths).ok_or_else(uneven)?;
        let stride = rows * each;
        need("concat_columns", "out", out.0.len(), rows * width)?;
        let needed = widths.len() * stride;
        need("concat_columns", "parts", parts.0.len(), needed)?;
        let mut column = 0;
        for (number, &part_width) in widths.iter().enumerate() {
            let part = &parts.0[number * stride..];
            for row in 0..rows {
                out.0[row * width + column..][..part_width]
                    .copy_from_slice(&part[row * part_width..][..part_width]);
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
        let (draws, len) = (rows.draws(mode), vocab.len());
        for draw in draws {
            let last = draw.uncond_row.unwrap_or(0).max(draw.row);
            need("sample", "logits", logits.0.len(), (last + 1) * len)?;
        }
        if suppressed.iter().any(|&index| index as usize >= len) {
            return Err(mismatch("sample", format!("suppressed index beyond {len}")));
        }
        let drawn = sample::sample(&logits.0, len, suppressed, draws);
        rows.keep(mode, drawn, vocab.start);
        Ok(())
    }

    fn read_kv(&self, kv: &Kv, layer: usize, block: u32) -> Result<(Vec<f32>, Vec<f32>)> {
        if layer >= kv.layout.layers || block as usize >= kv.layout.blocks {
            return Err(mismatch("read_kv", format!("layer {layer}, block {block}")));
        }
        Ok(kv.read(layer, block))
    }
}
