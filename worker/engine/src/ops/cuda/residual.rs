//! The residual stream. Where products apply the scales of rows, a norm leaves them to the one that reads it.

use super::{
    Buffer, Cuda, Element, RowScales, Sums, kernels::Argument, mismatch, need, step::RowsArgument,
    want,
};
use crate::{
    Result,
    ops::{Residual, RmsNorm, StepRows},
};

/// As the kernels have them: threads of a row's block where a norm is made at once, and columns of a segment.
pub(super) const NORM_THREADS: usize = 512;
const SEGMENT: usize = 128;

/// `struct Residual` of `kernels/residual.cuh`.
#[repr(C)]
pub(super) struct Segments {
    rows: RowsArgument,
    h: u64,
    weight: u64,
    out: u64,
    squares: u64,
    count: i32,
    width: i32,
    image_only: i32,
}

// As the kernels assert it.
const _: () = assert!(size_of::<Segments>() == 88);

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernels' struct.
    unsafe impl super::Argument for super::Segments {}
}

impl Segments {
    /// How many there are.
    pub(super) fn units(&self) -> usize {
        self.count as usize * (self.width as usize).div_ceil(SEGMENT)
    }

    /// Grid and block of a kernel that has a warp for each unit, as far as that goes.
    pub(super) fn launch(&self, multiprocessors: usize) -> ([usize; 3], [usize; 2]) {
        let warps = warps(self.units() / multiprocessors);
        let blocks = self.units().div_ceil(warps).min(multiprocessors);
        ([blocks, 1, 1], [32 * warps, 1])
    }
}

impl Cuda {
    /// `to` by segments, if kernels can: the product that reads the norm scales its rows then.
    pub(super) fn segments(&self, to: &mut Residual<'_, Self>) -> Result<Option<Segments>> {
        let (count, width) = (to.rows.len(), to.width);
        let scaled_later = |norm: &RmsNorm<'_, Self>| norm.out.element == Element::Bf16;
        if !self.tiled() || !width.is_multiple_of(4) || !to.norm.as_ref().is_none_or(scaled_later) {
            return Ok(None);
        }
        check(to)?;
        let mut segments = Segments {
            rows: to.rows.argument(),
            h: to.h.memory.address(),
            weight: 0,
            out: 0,
            squares: 0,
            count: count as i32,
            width: width as i32,
            image_only: i32::from(to.multimodal_only),
        };
        if let Some(RmsNorm { weight, eps, out }) = &mut to.norm {
            out.hold_values();
            // Of as many rows as there can be: memory may not be reserved while other ranks wait.
            let most = out.len / width * width.div_ceil(SEGMENT);
            segments.squares = out.room(self, most * 4)?;
            segments.weight = weight.memory.address();
            segments.out = out.memory.address();
            out.scales = RowScales {
                squares: segments.squares,
                rows: count as i32,
                width: width as i32,
                eps: *eps,
            };
        }
        Ok(Some(segments))
    }

    /// `h += delta`, and the norm, if there is one.
    pub(super) fn add(&self, delta: Option<&mut Buffer>, mut to: Residual<'_, Self>) -> Result<()> {
        let (count, width) = (to.rows.len(), to.width);
        if let Some(delta) = &delta {
            delta.check("residual")?;
            want("residual", "delta", delta, Element::F32, count * width)?;
        }
        if let Some(segments) = self.segments(&mut to)? {
            let sums = delta.map_or(Sums::NONE, |delta| delta.spend(width));
            let (grid, block) = segments.launch(self.multiprocessors);
            return self.launch(
                "residual_segments",
                grid,
                block,
                0,
                true,
                &[&segments, &sums],
            );
        }
        check(&to)?;
        let sums = delta.map_or(Sums::NONE, |delta| delta.sums());
        let (weight, eps, out, suffix) = match &mut to.norm {
            Some(RmsNorm { weight, eps, out }) => {
                out.hold_values();
                let suffix = out.element.suffix();
                (weight.memory.address(), *eps, out.memory.address(), suffix)
            }
            None => (0, 0.0, 0, Element::F32.suffix()),
        };
        let arguments: [&dyn Argument; 8] = [
            &to.rows.argument(),
            &to.h.memory.address(),
            &sums,
            &i32::from(to.multimodal_only),
            &weight,
            &eps,
            &(width as i32),
            &out,
        ];
        let name = format!("residual_norm_{suffix}");
        self.launch(&name, [count, 1, 1], [NORM_THREADS, 1], 0, true, &arguments)
    }
}

/// Warps of a block of `residual_segments` that has `units` units: one each, as far as that goes.
fn warps(units: usize) -> usize {
    units.next_power_of_two().clamp(8, 32)
}

/// Refuses buffers that are too small.
fn check(to: &Residual<'_, Cuda>) -> Result<()> {
    let (op, len) = ("residual", to.rows.len() * to.width);
    want(op, "h", to.h, Element::F32, len)?;
    if to.h.pending.is_some() {
        return Err(mismatch(op, "the stream is yet to be added up".into()));
    }
    let Some(norm) = &to.norm else {
        return Ok(());
    };
    need(op, "weight", norm.weight.len, to.width)?;
    need(op, "out", norm.out.len, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_a_warp_for_each_unit_as_far_as_that_goes() {
        assert_eq!([0, 1, 8, 9, 27, 10_000].map(warps), [8, 8, 8, 16, 32, 32]);
    }
}
