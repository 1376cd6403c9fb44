//! A lookup table that stays in host memory.

use half::{bf16, f16};

use crate::{
    Error, Result,
    checkpoint::{DType, HostTensor},
};

/// Rows of a stored table `[rows, width]`, read only where they are needed.
pub struct Embedding {
    table: HostTensor,
    rows: usize,
    width: usize,
}

impl Embedding {
    /// The rows of `table`; dimensions before the last are flattened.
    pub fn new(table: HostTensor) -> Self {
        let width = table.shape().last().copied().unwrap_or(0);
        let rows = table.len().checked_div(width).unwrap_or(0);
        Self { table, rows, width }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The rows `ids`, `[ids, width]`.
    ///
    /// # Errors
    /// [`Error::BadInput`] naming `field` if an id is not below [`Embedding::rows`].
    pub fn gather(&self, field: &'static str, ids: &[u32]) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(ids.len() * self.width);
        for &id in ids {
            if id as usize >= self.rows {
                return Err(Error::bad_input(
                    field,
                    format!("ids below {}", self.rows),
                    id,
                ));
            }
            values.extend(self.row(id as usize));
        }
        Ok(values)
    }

    /// The values of one row, which must exist.
    pub fn row(&self, row: usize) -> impl Iterator<Item = f32> + '_ {
        let dtype = self.table.dtype();
        let stride = self.width * dtype.size();
        let bytes = &self.table.bytes()[row * stride..(row + 1) * stride];
        bytes.chunks_exact(dtype.size()).map(move |b| match dtype {
            DType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
            DType::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathers_rows_and_refuses_others() {
        let table = HostTensor::from_f32("t", &[3, 2], &[0., 1., 2., 3., 4., 5.]);
        let table = Embedding::new(table);
        assert_eq!(table.gather("ids", &[2, 0]).unwrap(), [4., 5., 0., 1.]);
        assert!(matches!(
            table.gather("ids", &[3]),
            Err(Error::BadInput { .. })
        ));
    }
}
