//! Token draws.

use std::ops::Range;

use super::{Buffer, Cuda, Element, Rows, kernels::Argument, mismatch, want};
use crate::{Result, ops::StepRows, schedule::Mode};

/// Entries that may be suppressed.
const MAX_SUPPRESSED: usize = 16;

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

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernel's struct.
    unsafe impl super::Argument for super::Sampling {}
}

impl Cuda {
    /// Draws what `rows` draw for `mode`.
    pub(super) fn draw(
        &self,
        logits: &Buffer,
        vocab: Range<u32>,
        suppressed: &[u32],
        mode: Mode,
        rows: &Rows,
    ) -> Result<()> {
        let (len, picked) = (vocab.len(), rows.picked(mode));
        want("sample", "logits", logits, Element::F32, picked * len)?;
        if suppressed.len() > MAX_SUPPRESSED {
            let reason = format!("{} suppressed; at most {MAX_SUPPRESSED}", suppressed.len());
            return Err(mismatch("sample", reason));
        }
        self.settle(logits)?;
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
}
