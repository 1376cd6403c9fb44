//! What a backbone runs on.

use std::{fmt, ops::Range, slice, str::FromStr, sync::Arc};

use xomni_engine::{
    Error, Result,
    checkpoint::{BackboneConfig, Weights},
    group::{GroupConfig, ThreadGroup},
    ops::cpu::Cpu,
};

/// Memory for keys and values on a CPU, unless told otherwise.
const CPU_KV_BYTES: usize = 2 << 30;

/// Where a backbone runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor, in f32.
    Cpu,
    /// An NVIDIA GPU, in bf16: by its number among those that `CUDA_VISIBLE_DEVICES` shows.
    Cuda(usize),
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) if !number.starts_with('+') => number
                .parse()
                .map(Self::Cuda)
                .map_err(|error| format!("{error}; must be cpu, cuda or cuda:NUMBER")),
            _ => Err("must be cpu, cuda or cuda:NUMBER".into()),
        }
    }
}

/// The devices that `ranks` ranks of one process run on: `device`, or the GPUs `gpus`, one a rank.
///
/// # Errors
/// [`Error::Unsupported`] for ranks that would share a GPU, or for more GPUs than ranks.
pub fn placement(device: DeviceKind, gpus: &[usize], ranks: usize) -> Result<Vec<DeviceKind>> {
    let refuse = |what: String, reason: String| Err(Error::Unsupported { what, reason });
    let given: Vec<String> = gpus.iter().map(ToString::to_string).collect();
    let given = format!("--devices {}", given.join(","));
    match (device, gpus) {
        (DeviceKind::Cpu, []) => Ok(vec![device]),
        (DeviceKind::Cuda(_), []) if ranks == 1 => Ok(vec![device]),
        (DeviceKind::Cuda(_), []) => refuse(
            format!("{ranks} ranks on --device {device}"),
            "each takes a GPU of its own: name them with --devices, or start a process for each"
                .into(),
        ),
        (_, gpus) if gpus.len() != ranks => {
            refuse(given, format!("{} GPUs for {ranks} ranks", gpus.len()))
        }
        (_, gpus) => {
            let mut sorted = gpus.to_vec();
            sorted.sort_unstable();
            match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                Some(pair) => refuse(
                    given,
                    format!(
                        "GPU {} is there twice; NCCL takes a GPU for one rank of a process only",
                        pair[0]
                    ),
                ),
                None => Ok(gpus.iter().copied().map(DeviceKind::Cuda).collect()),
            }
        }
    }
}

/// The opened devices of a process.
#[derive(Debug, Clone)]
pub enum Devices {
    /// The processor, for all ranks.
    Cpu(Arc<Cpu>),
    /// GPUs, one a rank.
    #[cfg(feature = "cuda")]
    Cuda(Vec<Arc<xomni_engine::ops::cuda::Cuda>>),
}

impl Devices {
    /// Opens the devices of a [`placement`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is no such device, if this program was built without it, or
    /// if GPUs differ in what they compute.
    pub fn open(kinds: &[DeviceKind]) -> Result<Self> {
        let mut gpus = Vec::new();
        for kind in kinds {
            match kind {
                DeviceKind::Cpu => return Ok(Self::Cpu(Arc::new(Cpu::new()))),
                DeviceKind::Cuda(number) => gpus.push(*number),
            }
        }
        Self::open_gpus(&gpus)
    }

    #[cfg(feature = "cuda")]
    fn open_gpus(gpus: &[usize]) -> Result<Self> {
        use xomni_engine::ops::cuda::{Cuda, Precision};
        let open = |&gpu: &usize| Cuda::open(gpu, Precision::Bf16).map(Arc::new);
        let opened: Vec<_> = gpus.iter().map(open).collect::<Result<_>>()?;
        let numerics: Vec<_> = opened.iter().map(|cuda| cuda.numerics()).collect();
        if numerics.iter().any(|other| *other != numerics[0]) {
            return Err(Error::Unsupported {
                what: format!("GPUs {gpus:?} in one group"),
                reason: format!("they do not compute the same bits: {numerics:?}"),
            });
        }
        Ok(Self::Cuda(opened))
    }

    #[cfg(not(feature = "cuda"))]
    fn open_gpus(gpus: &[usize]) -> Result<Self> {
        let what = match gpus {
            [gpu] => format!("--device {}", DeviceKind::Cuda(*gpu)),
            gpus => format!("--devices {gpus:?}"),
        };
        Err(Error::Unsupported {
            what,
            reason: "this program was built without it (cargo build --features cuda)".into(),
        })
    }

    /// What of the device decides about the bits of a result.
    pub fn numerics(&self) -> String {
        match self {
            Self::Cpu(cpu) => format!("f32-cpu-{}", cpu.isa()),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpus) => gpus[0].numerics(),
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

    /// Memory for keys and values of all ranks, where nobody says how much: of each GPU, what
    /// `weights` bytes of weights leave of nine tenths of it, and as much as the fullest one has.
    ///
    /// # Errors
    /// [`Error::Capacity`] if nothing is left.
    pub fn kv_bytes(&self, weights: usize) -> Result<usize> {
        // Without GPUs nothing depends on the weights.
        let _ = weights;
        match self {
            Self::Cpu(_) => Ok(CPU_KV_BYTES),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpus) => {
                let mut least = usize::MAX;
                for cuda in gpus {
                    let (free, total) = cuda.memory()?;
                    let usable = free.saturating_sub(total / 10);
                    let left = usable.checked_sub(weights).filter(|&left| left > 0);
                    let left = left.ok_or_else(|| Error::Capacity {
                        what: "GPU memory",
                        limit: format!(
                            "{} MiB free of {} MiB, a tenth of which stays free",
                            free >> 20,
                            total >> 20
                        ),
                        needed: format!("{} MiB for weights", weights >> 20),
                        retry_after: None,
                    })?;
                    least = least.min(left);
                }
                Ok(least * gpus.len())
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
            Self::Cpu(cpu) => {
                ThreadGroup::start_part(slice::from_ref(cpu), config, weights, group, ranks)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(gpus) => ThreadGroup::start_part(gpus, config, weights, group, ranks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_program_without_cuda_says_so() {
        let refused = |kinds: &[DeviceKind]| {
            let error = Devices::open(kinds).expect_err("not built in");
            error.to_string()
        };
        let one = refused(&[DeviceKind::Cuda(3)]);
        assert!(
            one.contains("--device cuda:3") && one.contains("built without it"),
            "{one}"
        );
        let two = refused(&[DeviceKind::Cuda(0), DeviceKind::Cuda(1)]);
        assert!(two.contains("--devices [0, 1]"), "{two}");
    }

    #[test]
    fn the_processor_is_always_there() {
        let device = Devices::open(&[DeviceKind::Cpu]).expect("a processor");
        assert_eq!(device.kv_bytes(1 << 50).expect("any weights"), CPU_KV_BYTES);
        assert!(device.numerics().starts_with("f32-cpu-"));
    }

    #[test]
    fn devices_are_named_by_kind_and_number() {
        let kinds = [("cpu", DeviceKind::Cpu), ("cuda", DeviceKind::Cuda(0))];
        for (text, kind) in kinds.into_iter().chain([("cuda:12", DeviceKind::Cuda(12))]) {
            assert_eq!(text.parse(), Ok(kind));
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cpu:0"] {
            let error = text.parse::<DeviceKind>().expect_err(text);
            assert!(
                error.contains("must be cpu, cuda or cuda:NUMBER"),
                "{error}"
            );
        }
    }

    #[test]
    fn every_rank_on_gpus_has_one_of_its_own() {
        let (cpu, cuda) = (DeviceKind::Cpu, DeviceKind::Cuda(1));
        let placed = |device, gpus: &[usize], ranks| placement(device, gpus, ranks);
        assert_eq!(placed(cpu, &[], 8).expect("shared"), [cpu]);
        assert_eq!(placed(cuda, &[], 1).expect("its own"), [cuda]);
        let two = placed(cpu, &[2, 0], 2).expect("in this order");
        assert_eq!(two, [DeviceKind::Cuda(2), DeviceKind::Cuda(0)]);
        let refused = [
            (placed(cuda, &[], 2), "2 ranks on --device cuda:1"),
            (placed(cpu, &[0, 1], 4), "2 GPUs for 4 ranks"),
            (placed(cpu, &[0, 1], 1), "2 GPUs for 1 ranks"),
            (placed(cpu, &[0, 1, 0], 3), "--devices 0,1,0"),
            (placed(cpu, &[0, 1, 0], 3), "GPU 0 is there twice"),
        ];
        for (result, reason) in refused {
            let error = result.expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
