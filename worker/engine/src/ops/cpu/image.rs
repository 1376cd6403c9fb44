//! [`ImageOps`] of the CPU: sizes are checked here, kernels are elsewhere.

use super::{
    Buffer, Cpu, Matrix, conv,
    dense_attention::DenseAttention,
    mismatch, need,
    norm::{self, Affine, GroupNorm},
    pointwise,
};
use crate::{
    Result,
    ops::{Activation, AttentionShape, ConvShape, ImageOps, Norm},
};

/// Rows of each of `batch` equal runs, if they are equal and `modulation` has a row for each.
fn run_length(op: &str, rows: usize, batch: usize, modulation: &Buffer) -> Result<usize> {
    if batch == 0 || !rows.is_multiple_of(batch) || !modulation.0.len().is_multiple_of(batch) {
        return Err(mismatch(op, format!("{rows} rows in {batch} runs")));
    }
    Ok((rows / batch).max(1))
}

impl ImageOps for Cpu {
    fn row_norm(
        &self,
        norm: Norm,
        x: &Buffer,
        rows: usize,
        width: usize,
        weight: Option<&Vec<f32>>,
        bias: Option<&Vec<f32>>,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<()> {
        need("row_norm", "x", x.0.len(), rows * width)?;
        need("row_norm", "out", out.0.len(), rows * width)?;
        for vector in [weight, bias].into_iter().flatten() {
            need("row_norm", "weight or bias", vector.len(), width)?;
        }
        let affine = Affine {
            weight: weight.map(Vec::as_slice),
            base: 0.0,
            bias: bias.map(Vec::as_slice),
        };
        norm::rows(
            self.isa,
            norm,
            &x.0,
            width,
            |_| affine,
            eps,
            &mut out.0[..rows * width],
        );
        Ok(())
    }

    fn adaptive_norm(
        &self,
        x: &Buffer,
        rows: usize,
        width: usize,
        modulation: &Buffer,
        batch: usize,
        shift: usize,
        scale: usize,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<()> {
        let run = run_length("adaptive_norm", rows, batch, modulation)?;
        let columns = modulation.0.len() / batch;
        need("adaptive_norm", "x", x.0.len(), rows * width)?;
        need("adaptive_norm", "out", out.0.len(), rows * width)?;
        need(
            "adaptive_norm",
            "a row of modulation",
            columns,
            shift.max(scale) + width,
        )?;
        let affine = |r: usize| {
            let modulation = &modulation.0[r / run * columns..][..columns];
            Affine {
                weight: Some(&modulation[scale..][..width]),
                base: 1.0,
                bias: Some(&modulation[shift..][..width]),
            }
        };
        let out = &mut out.0[..rows * width];
        norm::rows(self.isa, Norm::Layer, &x.0, width, affine, eps, out);
        Ok(())
    }

    fn gated_add(
        &self,
        x: &mut Buffer,
        y: &Buffer,
        rows: usize,
        width: usize,
        modulation: &Buffer,
        batch: usize,
        gate: usize,
    ) -> Result<()> {
        let run = run_length("gated_add", rows, batch, modulation)?;
        let columns = modulation.0.len() / batch;
        need("gated_add", "x", x.0.len(), rows * width)?;
        need("gated_add", "y", y.0.len(), rows * width)?;
        need("gated_add", "a row of modulation", columns, gate + width)?;
        pointwise::add_gated(&mut x.0[..rows * width], &y.0, width, |r| {
            &modulation.0[r / run * columns + gate..][..width]
        });
        Ok(())
    }

    fn add(&self, x: &mut Buffer, y: &Buffer) -> Result<()> {
        need("add", "y", y.0.len(), x.0.len())?;
        pointwise::add(&mut x.0, &y.0);
        Ok(())
    }

    fn activate(&self, x: &mut Buffer, act: Activation) -> Result<()> {
        pointwise::activate(self.isa, act, &mut x.0, None);
        Ok(())
    }

    fn activate_mul(&self, gate: &mut Buffer, up: &Buffer, act: Activation) -> Result<()> {
        need("activate_mul", "up", up.0.len(), gate.0.len())?;
        pointwise::activate(self.isa, act, &mut gate.0, Some(&up.0));
        Ok(())
    }

    fn dense_attention(
        &self,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        shape: AttentionShape,
        scale: f32,
        bias: Option<&Buffer>,
        causal: bool,
        out: &mut Buffer,
    ) -> Result<()> {
        let AttentionShape {
            batch,
            len,
            heads,
            head_dim,
        } = shape;
        let needed = batch * len * heads * head_dim;
        for (name, buffer) in [("q", q), ("k", k), ("v", v), ("out", &*out)] {
            need("dense_attention", name, buffer.0.len(), needed)?;
        }
        if let Some(bias) = bias {
            need("dense_attention", "bias", bias.0.len(), heads * len * len)?;
        }
        DenseAttention {
            q: &q.0,
            k: &k.0,
            v: &v.0,
            shape,
            scale,
            bias: bias.map(|bias| &*bias.0),
            causal,
        }
        .run(self.isa, &mut out.0[..needed]);
        Ok(())
    }

    fn head_norm_rope(
        &self,
        x: &mut Buffer,
        shape: AttentionShape,
        weight: &Vec<f32>,
        eps: f32,
        rope: Option<(&Buffer, &Buffer)>,
    ) -> Result<()> {
        let AttentionShape {
            batch,
            len,
            heads,
            head_dim,
        } = shape;
        let width = heads * head_dim;
        need("head_norm_rope", "x", x.0.len(), batch * len * width)?;
        need("head_norm_rope", "weight", weight.len(), head_dim)?;
        if let Some((cos, sin)) = rope {
            need("head_norm_rope", "cos", cos.0.len(), len * (head_dim / 2))?;
            need("head_norm_rope", "sin", sin.0.len(), len * (head_dim / 2))?;
        }
        let rope = rope.map(|(cos, sin)| (&*cos.0, &*sin.0));
        let x = &mut x.0[..batch * len * width];
        norm::heads(self.isa, x, width, &weight[..head_dim], eps, rope, len);
        Ok(())
    }

    fn conv2d(
        &self,
        x: &Buffer,
        shape: ConvShape,
        w: &Matrix,
        bias: Option<&Vec<f32>>,
        out: &mut Buffer,
    ) -> Result<()> {
        let side = shape.height.min(shape.width) + 2 * shape.padding;
        if shape.stride == 0
            || shape.kernel == 0
            || side < shape.kernel
            || w.cols() != shape.kernel * shape.kernel * shape.channels
        {
            return Err(mismatch(
                "conv2d",
                format!("{shape:?} with {} columns", w.cols()),
            ));
        }
        let (height, width) = shape.output();
        let (positions, outs) = (height * width, w.rows());
        need(
            "conv2d",
            "x",
            x.0.len(),
            shape.height * shape.width * shape.channels,
        )?;
        need("conv2d", "out", out.0.len(), positions * outs)?;
        if let Some(bias) = bias {
            need("conv2d", "bias", bias.len(), outs)?;
        }
        let bias = bias.map(|bias| &bias[..outs]);
        conv::conv2d(
            self.isa,
            &x.0,
            shape,
            w,
            bias,
            &mut out.0[..positions * outs],
        );
        Ok(())
    }

    fn group_norm(
        &self,
        x: &Buffer,
        positions: usize,
        channels: usize,
        groups: usize,
        weight: &Vec<f32>,
        bias: &Vec<f32>,
        eps: f32,
        act: Option<Activation>,
        out: &mut Buffer,
    ) -> Result<()> {
        let len = positions * channels;
        if groups == 0 || channels == 0 || !channels.is_multiple_of(groups) {
            return Err(mismatch(
                "group_norm",
                format!("{channels} channels, {groups} groups"),
            ));
        }
        need("group_norm", "x", x.0.len(), len)?;
        need("group_norm", "out", out.0.len(), len)?;
        need("group_norm", "weight", weight.len(), channels)?;
        need("group_norm", "bias", bias.len(), channels)?;
        GroupNorm {
            channels,
            groups,
            weight,
            bias,
            eps,
            act,
        }
        .run(self.isa, &x.0[..len], &mut out.0[..len]);
        Ok(())
    }

    fn upsample2x(
        &self,
        x: &Buffer,
        height: usize,
        width: usize,
        channels: usize,
        out: &mut Buffer,
    ) -> Result<()> {
        let len = height * width * channels;
        need("upsample2x", "x", x.0.len(), len)?;
        need("upsample2x", "out", out.0.len(), 4 * len)?;
        conv::upsample2x(&x.0, width, channels, &mut out.0[..4 * len]);
        Ok(())
    }
}
