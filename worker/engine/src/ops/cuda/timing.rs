//! How long things take on the device.

use super::{
    Cuda,
    driver::{Event, Memory},
    lock,
};
use crate::Result;

impl Cuda {
    /// The time of every kernel that `work` launches (one at a time, no step played from a recording): names and milliseconds, in order.
    ///
    /// # Errors
    /// As `work`.
    pub fn profile(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<(String, f32)>> {
        *lock(&self.profile) = Some(Vec::new());
        let worked = work().and_then(|()| self.stream.wait());
        let events = lock(&self.profile).take().unwrap_or_default();
        worked?;
        let time = |(name, start, end): (String, Event, Event)| Ok((name, end.since(&start)?));
        events.into_iter().map(time).collect()
    }

    /// Whether kernels are being timed, so that a step has to launch each of them.
    pub(super) fn profiles(&self) -> bool {
        lock(&self.profile).is_some()
    }

    /// Milliseconds that what `work` launches takes on the device, one thing after the other.
    ///
    /// # Errors
    /// As `work`.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        let (start, end) = (Event::timed(&self.context)?, Event::timed(&self.context)?);
        self.stream.record_event(&start)?;
        work()?;
        self.stream.record_event(&end)?;
        self.stream.wait()?;
        end.since(&start)
    }

    /// Bytes a second that reading a buffer larger than any cache moves: the median of `times`.
    ///
    /// # Errors
    /// [`Error::Capacity`] if there is no memory for it.
    pub fn read_bandwidth(&self, bytes: usize, times: usize) -> Result<f64> {
        let memory = Memory::new(&self.context, bytes / 16 * 16, "measuring the bandwidth")?;
        let out = Memory::new(&self.context, 4, "measuring the bandwidth")?;
        // Every word other than the last: memory that is all alike may be read faster.
        let pattern: Vec<u32> = (0..1u32 << 20)
            .map(|i| i.wrapping_mul(0x9e37_79b9))
            .collect();
        for offset in (0..memory.bytes()).step_by(pattern.len() * 4) {
            let len = pattern.len().min((memory.bytes() - offset) / 4);
            self.stream.upload(&pattern[..len], &memory, offset)?;
        }
        let mut rates = Vec::new();
        for _ in 0..times.max(1) {
            let milliseconds = self.time(|| {
                self.launch(
                    "stream_read",
                    [self.multiprocessors * 4, 1, 1],
                    [512, 1],
                    0,
                    false,
                    &[&memory.address(), &(memory.bytes() / 16), &out.address()],
                )
            })?;
            rates.push(memory.bytes() as f64 / f64::from(milliseconds) * 1e3);
        }
        rates.sort_by(f64::total_cmp);
        Ok(rates[rates.len() / 2])
    }

    /// Launches by `launch`, timed if kernels are.
    pub(super) fn profiled(
        &self,
        label: impl FnOnce() -> String,
        launch: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut profile = lock(&self.profile);
        let Some(events) = &mut *profile else {
            return launch();
        };
        let (start, end) = (Event::timed(&self.context)?, Event::timed(&self.context)?);
        self.stream.record_event(&start)?;
        launch()?;
        self.stream.record_event(&end)?;
        events.push((label(), start, end));
        Ok(())
    }
}
