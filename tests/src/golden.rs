//! A golden fixture: a checkpoint and the outputs of the original implementation on it.

use std::{fs, path::PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;

/// A fixture directory, laid out as `tests/golden/README.md` describes.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// Holds `expected`.
    root: PathBuf,
    /// Holds `x-omni` and `flux`.
    checkpoint: PathBuf,
}

/// Largest accepted deviation of an `f32` result from an expected tensor.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// RMS of the difference over RMS of the expected values.
    pub rms_rel: f64,
    /// Largest absolute difference.
    pub max_abs: f64,
}

impl Tolerance {
    /// Single forward passes.
    pub const F32: Self = Self {
        rms_rel: 3e-5,
        max_abs: 3e-4,
    };
    /// Latents and pixels after a whole denoising loop.
    pub const DECODE: Self = Self {
        rms_rel: 1e-4,
        max_abs: f64::INFINITY,
    };
}

impl Fixture {
    /// The directory named by `XOMNI_GOLDEN`, or the committed `xomni-tiny`.
    pub fn open() -> Self {
        let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/xomni-tiny");
        let root = std::env::var_os("XOMNI_GOLDEN").map_or_else(|| committed.into(), PathBuf::from);
        Self::at(root.clone(), root)
    }

    /// The shipped X-Omni-nano and the outputs of the implementation that trained it.
    pub fn nano() -> Self {
        let folder = env!("CARGO_MANIFEST_DIR");
        let expected = PathBuf::from(folder).join("golden/xomni-nano");
        Self::at(expected, PathBuf::from(folder).join("../models/nano"))
    }

    fn at(root: PathBuf, checkpoint: PathBuf) -> Self {
        assert!(
            root.join("expected").is_dir(),
            "{} holds no fixture",
            root.display()
        );
        Self { root, checkpoint }
    }

    /// The X-Omni checkpoint directory.
    pub fn x_omni(&self) -> PathBuf {
        self.checkpoint.join("x-omni")
    }

    /// The FLUX directory.
    pub fn flux(&self) -> PathBuf {
        self.checkpoint.join("flux")
    }

    /// A file of the fixture.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// `expected/{name}.json`.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> T {
        let path = self.root.join("expected").join(format!("{name}.json"));
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// `expected/{name}.safetensors`.
    pub fn tensors(&self, name: &str) -> Tensors {
        let path = self
            .root
            .join("expected")
            .join(format!("{name}.safetensors"));
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Tensors {
            name: name.to_owned(),
            bytes,
        }
    }
}

/// The tensors of one expected file.
#[derive(Debug)]
pub struct Tensors {
    name: String,
    bytes: Vec<u8>,
}

impl Tensors {
    fn view(&self, tensor: &str, dtype: Dtype) -> (Vec<usize>, Vec<u8>) {
        let file =
            SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let view = file
            .tensor(tensor)
            .unwrap_or_else(|e| panic!("{}: {tensor}: {e}", self.name));
        assert_eq!(view.dtype(), dtype, "{}: {tensor}", self.name);
        (view.shape().to_vec(), view.data().to_vec())
    }

    /// Whether the file holds `tensor`.
    pub fn contains(&self, tensor: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).is_ok_and(|file| file.tensor(tensor).is_ok())
    }

    /// The dimensions of an `f32` tensor.
    pub fn shape(&self, tensor: &str) -> Vec<usize> {
        self.view(tensor, Dtype::F32).0
    }

    /// An `f32` tensor, row-major.
    pub fn f32(&self, tensor: &str) -> Vec<f32> {
        let (_, data) = self.view(tensor, Dtype::F32);
        data.chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    /// An `i64` tensor of non-negative ids, row-major.
    pub fn ids(&self, tensor: &str) -> Vec<u32> {
        let (_, data) = self.view(tensor, Dtype::I64);
        data.chunks_exact(8)
            .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .map(|id| u32::try_from(id).unwrap_or_else(|e| panic!("{}: {tensor}: {e}", self.name)))
            .collect()
    }

    /// A `u8` tensor, row-major.
    pub fn u8(&self, tensor: &str) -> Vec<u8> {
        self.view(tensor, Dtype::U8).1
    }

    /// Asserts that `actual` is the `f32` tensor within `tolerance`.
    pub fn assert_close(&self, tensor: &str, actual: &[f32], tolerance: Tolerance) {
        let expected = self.f32(tensor);
        assert_close(
            &format!("{}: {tensor}", self.name),
            actual,
            &expected,
            tolerance,
        );
    }
}

/// Asserts that `actual` equals `expected` within `tolerance`, printing both measures.
pub fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: Tolerance) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of values");
    let (mut difference, mut energy, mut max_abs) = (0f64, 0f64, 0f64);
    for (index, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        assert!(a.is_finite(), "{what}: value {index} is {a}");
        let d = (f64::from(a) - f64::from(e)).abs();
        difference += d * d;
        energy += f64::from(e) * f64::from(e);
        max_abs = max_abs.max(d);
    }
    let rms_rel = (difference / energy.max(f64::MIN_POSITIVE)).sqrt();
    println!("{what}: rms_rel {rms_rel:.2e} max_abs {max_abs:.2e}");
    assert!(
        rms_rel <= tolerance.rms_rel && max_abs <= tolerance.max_abs,
        "{what}: rms_rel {rms_rel:.3e} max_abs {max_abs:.3e}, allowed {tolerance:?}"
    );
}

/// Asserts the rule for 8-bit pictures: no value off by more than one level, at most 0.5 % off.
pub fn assert_picture_close(what: &str, actual: &[u8], expected: &[u8]) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of values");
    let differences = actual.iter().zip(expected).map(|(a, e)| a.abs_diff(*e));
    let worst = differences.clone().max().unwrap_or(0);
    let off = differences.filter(|&d| d > 0).count();
    println!(
        "{what}: {off} of {} values off, by at most {worst}",
        expected.len()
    );
    assert!(
        worst <= 1 && off * 200 <= expected.len(),
        "{what}: {off} off, by at most {worst}"
    );
}
