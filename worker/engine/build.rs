//! Compiles the CUDA kernels, if the feature `cuda` is on: one fat binary a file, with machine code for
//! `sm_90a` and `sm_80` and PTX for what comes after.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// Files of `kernels/`.
const KERNELS: [&str; 12] = [
    "attention",
    "embed",
    "exchange",
    "gather",
    "linear",
    "norm",
    "pack",
    "pointwise",
    "product",
    "rope",
    "sample",
    "step",
];

const TARGETS: [&str; 3] = [
    "arch=compute_90a,code=sm_90a",
    "arch=compute_80,code=sm_80",
    "arch=compute_80,code=compute_80",
];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-env-changed=NVCC");
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("cargo::error={reason}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    let variable = |name| env::var_os(name).ok_or(format!("cargo sets {name}"));
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let nvcc = find_nvcc(&root)?;
    let headers = headers(&root.join("kernels"))?;
    let mut table = String::from("&[\n");
    let mut running = Vec::new();
    for kernel in KERNELS {
        let source = root.join("kernels").join(kernel).with_extension("cu");
        let binary = out.join(kernel).with_extension("fatbin");
        table += &format!("    include_bytes!({:?}),\n", binary.display().to_string());
        let mut inputs = headers.clone();
        inputs.extend([source.clone(), nvcc.clone()]);
        if is_newer(&binary, &inputs) {
            continue;
        }
        let mut command = Command::new(&nvcc);
        command.args(["-fatbin", "-O3", "-std=c++17", "-lineinfo"]);
        for target in TARGETS {
            command.args(["-gencode", target]);
        }
        command.arg(&source).arg("-o").arg(&binary);
        let child = command.spawn();
        let child = child.map_err(|error| format!("{} does not start: {error}", nvcc.display()))?;
        running.push((source, child));
    }
    for (source, mut child) in running {
        let ended = child.wait().map_err(|error| error.to_string())?;
        if !ended.success() {
            return Err(format!("nvcc failed on {}", source.display()));
        }
    }
    table += "]\n";
    fs::write(out.join("kernels.rs"), table).map_err(|error| error.to_string())
}

/// What kernels may include.
fn headers(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths = entries.iter().map(fs::DirEntry::path);
    Ok(paths
        .filter(|path| path.extension().is_some_and(|of| of == "cuh"))
        .collect())
}

/// Whether `output` was made after all of `inputs` changed.
fn is_newer(output: &Path, inputs: &[PathBuf]) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let Some(made) = changed(output) else {
        return false;
    };
    let mut changes = inputs.iter().map(|input| changed(input));
    changes.all(|change| change.is_some_and(|change| change < made))
}

/// `NVCC`, what `deploy/dev/cuda` installs, or the one on the PATH.
fn find_nvcc(root: &Path) -> Result<PathBuf, String> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return Ok(nvcc.into());
    }
    let installed = root.join("../../.venv/cuda/nvcc");
    if installed.exists() {
        return Ok(installed);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .map(|folder| folder.join("nvcc"))
        .find(|nvcc| nvcc.exists());
    found.ok_or("no nvcc: run deploy/dev/cuda, or name one in NVCC".into())
}
