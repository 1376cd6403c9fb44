//! Loading the golden checkpoint, whole and damaged.

use std::path::PathBuf;

use super::*;

fn golden(path: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/xomni-tiny");
    PathBuf::from(root).join(path)
}

#[test]
fn smoke() {
    Weights::open_safetensors(&golden("x-omni"), "model").unwrap();
    Weights::open_safetensors(&golden("x-omni/flux_siglip"), "diffusion_pytorch_model").unwrap();
    let mut w = Weights::open_torch(&golden("x-omni/siglip_vit.pt")).unwrap();
    w.tensor("pos_embed", &[1, 16384, 64]).unwrap();
    crate::checkpoint::XOmniConfig::open(&golden("x-omni")).unwrap();
    Weights::open_torch(&golden("x-omni/vq_projector.pt")).unwrap();
}
