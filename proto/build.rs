//! Generates the services and messages, and a descriptor set for gRPC reflection.

use std::{env, path::PathBuf};

const FILES: [&str; 6] = [
    "xomni/v1/chat.proto",
    "xomni/v1/cluster.proto",
    "xomni/v1/images.proto",
    "xomni/worker/v1/backbone.proto",
    "xomni/worker/v1/decoder.proto",
    "xomni/worker/v1/ranks.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("xomni.bin");
    tonic_prost_build::configure()
        .bytes(".")
        .file_descriptor_set_path(descriptors)
        .compile_protos(&FILES, &["."])?;
    Ok(())
}
