//! What a device has to tell of itself to be measured.

use std::{hint::black_box, time::Instant};

use rayon::prelude::*;

use crate::{
    Error, Result, memory,
    ops::{
        TransformerOps,
        cpu::{self, Cpu},
    },
};

/// A device whose limits are known.
pub trait Measured: TransformerOps {
    /// How far logits may be from those of the CPU: the root mean square of the differences,
    /// relative to that of the logits.
    const TOLERANCE: f64;

    /// Its name.
    ///
    /// # Errors
    /// What the device says.
    fn name(&self) -> Result<String>;

    /// Free and total bytes, if its memory is its own.
    ///
    /// # Errors
    /// What the device says.
    fn memory(&self) -> Result<Option<(usize, usize)>>;

    /// Bytes a second that reading something larger than any cache moves.
    ///
    /// # Errors
    /// [`Error::Capacity`] if there is no memory for it.
    fn read_bandwidth(&self) -> Result<f64>;

    /// Bytes of a weight and of a cached key or value.
    fn value_bytes(&self) -> (usize, usize);

    /// Fills the cache with noise, so that what is timed does not read zeros.
    ///
    /// # Errors
    /// What the device says.
    fn fill(&self, kv: &mut Self::Kv) -> Result<()>;

    /// Seconds from where `work` begins on the device to where it ends.
    ///
    /// # Errors
    /// As `work`.
    fn seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;

    /// The kernels that `work` runs, in order, with their milliseconds; none if the device does not
    /// tell them apart.
    ///
    /// # Errors
    /// As `work`.
    fn kernels(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<(String, f32)>>;
}

impl Measured for Cpu {
    const TOLERANCE: f64 = 1e-5;

    fn name(&self) -> Result<String> {
        let threads = rayon::current_num_threads();
        Ok(format!("{threads} CPU threads, {}", self.isa()))
    }

    fn memory(&self) -> Result<Option<(usize, usize)>> {
        Ok(None)
    }

    fn read_bandwidth(&self) -> Result<f64> {
        const WORDS: usize = 1 << 28;
        let words = memory::zeros::<u32>(WORDS);
        let mut words = words.ok_or_else(|| Error::Capacity {
            what: "memory to read",
            limit: "what the system gives".into(),
            needed: format!("{} bytes", WORDS * size_of::<u32>()),
            retry_after: None,
        })?;
        // Pages that were never written are all the same one.
        words.par_iter_mut().for_each(|word| *word = 1);
        let rate = |_| {
            let start = Instant::now();
            black_box(words.par_chunks(1 << 16).map(sum).sum::<u32>());
            (WORDS * size_of::<u32>()) as f64 / start.elapsed().as_secs_f64()
        };
        Ok((0..5).map(rate).fold(0.0, f64::max))
    }

    fn value_bytes(&self) -> (usize, usize) {
        (size_of::<u16>(), size_of::<f32>())
    }

    fn fill(&self, kv: &mut cpu::Kv) -> Result<()> {
        kv.fill();
        Ok(())
    }

    fn seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn kernels(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<Vec<(String, f32)>> {
        Ok(vec![])
    }
}

fn sum(words: &[u32]) -> u32 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{Measured, Result};
    use crate::ops::cuda::{Cuda, Kv, Precision};

    impl Measured for Cuda {
        const TOLERANCE: f64 = 2e-2;

        fn name(&self) -> Result<String> {
            self.name()
        }

        fn memory(&self) -> Result<Option<(usize, usize)>> {
            self.memory().map(Some)
        }

        fn read_bandwidth(&self) -> Result<f64> {
            self.read_bandwidth(4 << 30, 11)
        }

        fn value_bytes(&self) -> (usize, usize) {
            match self.precision() {
                Precision::Bf16 => (size_of::<u16>(), size_of::<u16>()),
                Precision::F32 => (size_of::<f32>(), size_of::<f32>()),
            }
        }

        fn fill(&self, kv: &mut Kv) -> Result<()> {
            kv.fill(self)
        }

        fn seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
            let milliseconds = self.time(work)?;
            Ok(f64::from(milliseconds) / 1e3)
        }

        fn kernels(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<(String, f32)>> {
            self.profile(work)
        }
    }
}
