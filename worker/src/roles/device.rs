//! What a backbone runs on.

use std::{fmt, ops::Range, sync::Arc};

use clap::ValueEnum;
use xomni_engine::{
    Error, Result,
    checkpoint::{BackboneConfig, Weights},
    group::{GroupConfig, ThreadGroup},
    ops::cpu::Cpu,
};

/// Memory for keys and values on a CPU, unless told otherwise.
const CPU_KV_BYTES: usize = 2 << 30;

/// Where a backbone runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// The processor, in f32
    Cpu,
    /// An NVIDIA GPU, in bf16
    Cuda,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// An opened device.
#[derive(Debug, Clone)]
pub enum Device {
    /// The processor.
    Cpu(Arc<Cpu>),
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(Arc<xomni_engine::ops::cuda::Cuda>),
}

impl Device {
    /// Opens a device; of several GPUs the first that `CUDA_VISIBLE_DEVICES` shows.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is no such device, or if this program was built without it.
    pub fn open(kind: DeviceKind) -> Result<Self> {
        match kind {
            DeviceKind::Cpu => Ok(Self::Cpu(Arc::new(Cpu::new()))),
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => {
                use xomni_engine::ops::cuda::{Cuda, Precision};
                Ok(Self::Cuda(Arc::new(Cuda::open(0, Precision::Bf16)?)))
            }
            #[cfg(not(feature = "cuda"))]
            DeviceKind::Cuda => Err(Error::Unsupported {
                what: "--device cuda".into(),
                reason: "this program was built without it (cargo build --features cuda)".into(),
            }),
        }
    }

    /// What of the device decides about the bits of a result.
    pub fn numerics(&self) -> String {
        match self {
            Self::Cpu(cpu) => format!("f32-cpu-{}", cpu.isa()),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.numerics(),
        }
    }

    /// Bytes of a cached value.
    pub fn kv_value_bytes(&self) -> usize {
        match self {
            Self::Cpu(_) => size_of::<f32>(),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => size_of::<u16>(),
        }
    }

    /// Memory for keys and values, where nobody says how much: of a GPU, what `weights` bytes of
    /// weights leave of nine tenths of it.
    ///
    /// # Errors
    /// [`Error::Capacity`] if nothing is left.
    pub fn kv_bytes(&self, weights: usize) -> Result<usize> {
        // Without GPUs nothing depends on the weights.
        let _ = weights;
        match self {
            Self::Cpu(_) => Ok(CPU_KV_BYTES),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => {
                let (free, total) = cuda.memory()?;
                let usable = free.saturating_sub(total / 10);
                let left = usable.checked_sub(weights).filter(|&left| left > 0);
                left.ok_or_else(|| Error::Capacity {
                    what: "GPU memory",
                    limit: format!(
                        "{} MiB free of {} MiB, a tenth of which stays free",
                        free >> 20,
                        total >> 20
                    ),
                    needed: format!("{} MiB for weights", weights >> 20),
                    retry_after: None,
                })
            }
        }
    }

    /// Loads `ranks` of a group and starts them; see [`ThreadGroup::start_part`].
    ///
    /// # Errors
    /// As there.
    pub fn start(
        &self,
        config: &BackboneConfig,
        weights: Weights,
        group: &GroupConfig,
        ranks: Range<usize>,
    ) -> Result<ThreadGroup> {
        match self {
            Self::Cpu(cpu) => ThreadGroup::start_part(cpu, config, weights, group, ranks),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => ThreadGroup::start_part(cuda, config, weights, group, ranks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_program_without_cuda_says_so() {
        let refused = Device::open(DeviceKind::Cuda).expect_err("not built in");
        let text = refused.to_string();
        assert!(text.contains("built without it"), "{text}");
    }

    #[test]
    fn the_processor_is_always_there() {
        let device = Device::open(DeviceKind::Cpu).expect("a processor");
        assert_eq!(device.kv_bytes(1 << 50).expect("any weights"), CPU_KV_BYTES);
        assert!(device.numerics().starts_with("f32-cpu-"));
    }
}
