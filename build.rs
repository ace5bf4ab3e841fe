//! With the feature `cuda`: compiles the kernels under `src/kernels/cuda/` to PTX, which the program holds as text and the
//! driver compiles for its card. Without it there is nothing to do.
//!
//! PTX is made for compute capability 8.0, so it runs on every card from Ampere on; candle's kernels may be built for
//! another (`CUDA_COMPUTE_CAP`). The compiler is `$NVCC`, else `$CUDA_HOME/bin/nvcc` (or `$CUDA_PATH`), else `nvcc`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// The `.cu` files, each a module. As in `src/kernels/cuda/launch.rs`.
const MODULES: [&str; 7] = [
    "decode",
    "elementwise",
    "group_norm",
    "norm",
    "prefill",
    "rope",
    "sampling",
];

/// The oldest nvcc that is known to take the kernels' C++17.
const OLDEST_NVCC: u32 = 12;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/kernels/cuda");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(message) = compile_kernels() {
        println!("cargo::error={message}");
    }
}

fn compile_kernels() -> Result<(), String> {
    let nvcc = find_nvcc();
    check_version(&nvcc)?;
    let output = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    let mut errors = Vec::new();
    for modules in MODULES.chunks(jobs.unwrap_or(1).max(1)) {
        let (nvcc, output) = (&nvcc, &output);
        thread::scope(|scope| {
            let compilers: Vec<_> = modules
                .iter()
                .map(|module| scope.spawn(move || compile(nvcc, module, output)))
                .collect();
            for compiler in compilers {
                let result = compiler.join().unwrap_or(Err("a thread panicked".into()));
                errors.extend(result.err());
            }
        });
    }
    match errors.is_empty() {
        true => Ok(()),
        // One line each: cargo takes a message to end with its line.
        false => Err(errors.join("; ").replace('\n', " | ")),
    }
}

fn find_nvcc() -> OsString {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc;
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os);
    homes
        .map(|home| Path::new(&home).join("bin").join("nvcc"))
        .find(|nvcc| nvcc.is_file())
        .map_or("nvcc".into(), PathBuf::into_os_string)
}

/// # Errors
/// When there is no nvcc, or it is too old.
fn check_version(nvcc: &OsString) -> Result<(), String> {
    let answer = Command::new(nvcc).arg("--version").output();
    let answer = answer.map_err(|error| {
        format!(
            "the feature `cuda` needs NVIDIA's compiler, and {nvcc:?} does not start ({error}): install the CUDA toolkit \
             {OLDEST_NVCC} or newer and put nvcc on PATH, or set CUDA_HOME or NVCC"
        )
    })?;
    let text = String::from_utf8_lossy(&answer.stdout);
    // "Cuda compilation tools, release 13.0, V13.0.88"
    let release = text.split("release ").nth(1).unwrap_or_default();
    let major = release
        .split('.')
        .next()
        .and_then(|major| major.trim().parse::<u32>().ok());
    match major {
        Some(major) if major < OLDEST_NVCC => Err(format!(
            "{nvcc:?} is release {major}; the kernels need {OLDEST_NVCC} or newer"
        )),
        // A compiler that does not say is given a try.
        _ => Ok(()),
    }
}

fn compile(nvcc: &OsString, module: &str, output: &Path) -> Result<(), String> {
    let source = Path::new("src/kernels/cuda")
        .join(module)
        .with_extension("cu");
    let target = output.join(module).with_extension("ptx");
    let result = Command::new(nvcc)
        .args(["-ptx", "-O3", "-std=c++17"])
        .args(["-gencode", "arch=compute_80,code=compute_80"])
        .arg("-o")
        .arg(&target)
        .arg(&source)
        .output()
        .map_err(|error| format!("{nvcc:?} does not start: {error}"))?;
    if !result.status.success() {
        let said = String::from_utf8_lossy(&result.stderr);
        return Err(format!(
            "{nvcc:?} does not compile {}: {said}",
            source.display()
        ));
    }
    Ok(())
}
