//! Embeddings of a step's tokens.

use super::{Buffer, Cuda, Element, Rows, Table, kernels::Argument, want};
use crate::{
    Result,
    ops::{Residual, StepRows, VocabularyPart},
};

/// Threads of a row.
const THREADS: usize = 512;

/// `struct Vocabulary` of `kernels/embed.cu`.
#[repr(C)]
struct Vocabulary {
    text_first: i32,
    text_len: i32,
    image_first: i32,
    image_len: i32,
}

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernels' struct.
    unsafe impl super::Argument for super::Vocabulary {}
}

impl Vocabulary {
    fn of(part: &VocabularyPart) -> Self {
        Self {
            text_first: part.text.start as i32,
            text_len: part.text.len() as i32,
            image_first: part.multimodal.start as i32,
            image_len: part.multimodal.len() as i32,
        }
    }
}

impl Cuda {
    /// `out[r]` = the table's row for the token of row `r`.
    pub(super) fn embed_rows(
        &self,
        table: &Table,
        part: &VocabularyPart,
        rows: &Rows,
        out: &mut Buffer,
    ) -> Result<()> {
        want("embed", "out", out, Element::F32, rows.len() * table.width)?;
        out.hold_values();
        let arguments: [&dyn Argument; 5] = [
            &rows.argument(),
            &table.memory.address(),
            &Vocabulary::of(part),
            &(table.width as i32),
            &out.memory.address(),
        ];
        let name = format!("embed_{}", table.element.suffix());
        self.launch_first(&name, [rows.len(), 1, 1], [THREADS, 1], &arguments)
    }

    /// The same to a residual stream, and its norm.
    pub(super) fn embed_stream(
        &self,
        table: &Table,
        part: &VocabularyPart,
        rows: &Rows,
        mut to: Residual<'_, Self>,
    ) -> Result<()> {
        let same = table.width == to.width && !to.multimodal_only;
        if same
            && table.element == Element::Bf16
            && let Some(segments) = self.segments(&mut to)?
        {
            to.h.hold_values();
            let (grid, block) = segments.launch(self.multiprocessors);
            let arguments: [&dyn Argument; 3] =
                [&segments, &table.memory.address(), &Vocabulary::of(part)];
            return self.launch_first("embed_segments", grid, block, &arguments);
        }
        self.embed_rows(table, part, rows, to.h)?;
        self.add(None, to)
    }
}
