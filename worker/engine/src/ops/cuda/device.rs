//! [`Device`] of CUDA.

use super::{
    Buffer, Cuda, Element, Matrix, Vector, driver::Memory, kernels::Argument, mismatch, need,
};
use crate::{
    Result,
    checkpoint::HostTensor,
    ops::{Device, MatrixPart},
};

impl Cuda {
    /// Brings the values of `buffer` into its memory.
    pub(super) fn settle(&self, buffer: &Buffer) -> Result<()> {
        buffer.check("read")?;
        if let Some(partials) = buffer.partials {
            return self.fold(partials, buffer);
        }
        match buffer.pending {
            Some(pending) => self.finish(pending, buffer),
            None => Ok(()),
        }
    }
}

impl Device for Cuda {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Vector = Vector;

    fn buffer(&self, len: usize) -> Result<Buffer> {
        Buffer::new(self, len, Element::F32)
    }

    fn upload(&self, values: &[f32]) -> Result<Buffer> {
        let mut buffer = self.buffer(values.len())?;
        self.write(values, &mut buffer)?;
        Ok(buffer)
    }

    fn download(&self, buffer: &Buffer) -> Result<Vec<f32>> {
        self.read(buffer, buffer.len)
    }

    fn read(&self, buffer: &Buffer, len: usize) -> Result<Vec<f32>> {
        need("read", "buffer", buffer.len, len)?;
        self.settle(buffer)?;
        let mut values = vec![0.0; len];
        if buffer.element == Element::F32 {
            self.stream.download(&buffer.memory, 0, &mut values)?;
            return Ok(values);
        }
        let width = (buffer.scales.width as usize).max(1);
        let scales =
            buffer.row_scales("read", len.div_ceil(width), buffer.scales.width as usize)?;
        let wide = self.buffer(len)?;
        let arguments: [&dyn Argument; 4] = [
            &buffer.memory.address(),
            &scales,
            &wide.memory.address(),
            &(len as i32),
        ];
        self.launch(
            "widen",
            [self.blocks(len), 1, 1],
            [256, 1],
            0,
            false,
            &arguments,
        )?;
        self.stream.download(&wide.memory, 0, &mut values)?;
        Ok(values)
    }

    fn write(&self, values: &[f32], buffer: &mut Buffer) -> Result<()> {
        need("write", "buffer", buffer.len, values.len())?;
        buffer.hold_values();
        if buffer.element == Element::F32 {
            return self.stream.upload(values, &buffer.memory, 0);
        }
        let wide = self.upload(values)?;
        let len = values.len();
        let arguments: [&dyn Argument; 3] = [
            &wide.memory.address(),
            &buffer.memory.address(),
            &(len as i32),
        ];
        self.launch(
            "narrow",
            [self.blocks(len), 1, 1],
            [256, 1],
            0,
            false,
            &arguments,
        )
    }

    fn copy_rows(
        &self,
        src: &Buffer,
        src_row: usize,
        dst: &mut Buffer,
        dst_row: usize,
        rows: usize,
        width: usize,
    ) -> Result<()> {
        need("copy_rows", "src", src.len, (src_row + rows) * width)?;
        need("copy_rows", "dst", dst.len, (dst_row + rows) * width)?;
        if src.element != dst.element {
            return Err(mismatch("copy_rows", "buffers of two types".into()));
        }
        self.settle(src)?;
        self.settle(dst)?;
        (dst.pending, dst.partials) = (None, None);
        if src.scales != dst.scales {
            return Err(mismatch("copy_rows", "rows of two scales".into()));
        }
        let bytes = |values: usize| values * src.element.size();
        self.stream.copy(
            &src.memory,
            bytes(src_row * width),
            &dst.memory,
            bytes(dst_row * width),
            bytes(rows * width),
        )
    }

    fn matrix(&self, parts: &[MatrixPart]) -> Result<Matrix> {
        Matrix::new(self, parts)
    }

    fn vector(&self, parts: &[HostTensor]) -> Result<Vector> {
        let values: Vec<f32> = parts.iter().flat_map(HostTensor::to_f32).collect();
        let memory = Memory::new(&self.context, values.len() * 4, "parameters")?;
        self.stream.upload(&values, &memory, 0)?;
        Ok(Vector {
            memory,
            len: values.len(),
        })
    }

    fn linear(
        &self,
        x: &Buffer,
        rows: usize,
        w: &Matrix,
        bias: Option<&Vector>,
        out: &mut Buffer,
    ) -> Result<()> {
        self.product(x, rows, w, bias, out)
    }
}
