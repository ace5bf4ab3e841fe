//! The kernels' own text on the CPU, for tests: compiled by the machine's C++ compiler (`CXX`, else `c++`) behind
//! `emulation.h`, loaded as a library, and launched over tensors of the CPU.
//!
//! Every launch runs twice, the threads of a block in order and backwards: where they differ, the kernel lacks a barrier.
//! (Kernels that add in place run once.) Without a compiler the tests fail; `GIRANDOLE_SKIP_EMULATION=1` leaves them
//! out, which CI does not set.
#![allow(unsafe_code, reason = "a library of our own is loaded and called")]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Device, Result, Shape, Tensor, bail};
use half::{bf16, f16};
use libloading::Library;

use super::launch::{Module, Words};

/// As `emulation::Geometry`.
#[repr(C)]
struct Geometry {
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    backwards: u32,
}

/// What KERNEL of `emulation.h` declares: null, or what went wrong.
type Entry = unsafe extern "C" fn(*const Geometry, *const c_void, usize) -> *const c_char;

/// The libraries by module. One block runs at a time, so one launch does.
static LIBRARIES: Mutex<Option<HashMap<&'static str, Library>>> = Mutex::new(None);

thread_local! {
    static BACKWARDS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether the tests of kernels are left out on purpose.
pub(super) fn is_skipped() -> bool {
    let skipped = std::env::var_os("GIRANDOLE_SKIP_EMULATION").is_some_and(|value| value == "1");
    if skipped {
        eprintln!("left out: GIRANDOLE_SKIP_EMULATION=1");
    }
    skipped
}

/// Runs `body` with the threads of each block in order, then backwards, and returns what both gave.
///
/// # Panics
/// When they differ.
pub(super) fn both_ways<T: PartialEq + std::fmt::Debug>(body: impl Fn() -> T) -> T {
    let forwards = body();
    BACKWARDS.set(true);
    let backwards = body();
    BACKWARDS.set(false);
    assert!(
        forwards == backwards,
        "the order of a block's threads shows: a barrier is missing"
    );
    forwards
}

/// See [`super::launch::launch`].
pub(super) fn launch(
    module: Module,
    kernel: &str,
    axes: [u32; 3],
    threads: usize,
    words: &Words,
) -> Result<()> {
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let libraries = libraries.get_or_insert_default();
    if !libraries.contains_key(module.name) {
        libraries.insert(module.name, load(module));
    }
    let geometry = Geometry {
        grid: axes,
        threads: threads as u32,
        shared_bytes: 0,
        backwards: u32::from(BACKWARDS.get()),
    };
    // SAFETY: the library is our own text, whose KERNEL macro declares this signature; it checks the size of the
    // parameters, and the lock keeps launches apart.
    let error = unsafe {
        let entry = libraries[module.name].get::<Entry>(format!("launch_{kernel}\0").as_bytes());
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => bail!("{}.cu has no kernel {kernel}: {error}", module.name),
        };
        entry(&geometry, words.words.as_ptr().cast(), words.bytes)
    };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a string in the library's memory, which stays loaded.
    let error = unsafe { CStr::from_ptr(error) }.to_string_lossy();
    bail!("{kernel}: {error}")
}

/// Compiles a module where no test run has yet.
fn load(module: Module) -> Library {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda");
    let mut hash = DefaultHasher::new();
    for file in [&format!("{}.cu", module.name), "common.cuh", "emulation.h"] {
        std::fs::read(sources.join(file))
            .unwrap_or_else(|error| panic!("{file}: {error}"))
            .hash(&mut hash);
    }
    let library = folder().join(format!("{}-{:016x}.so", module.name, hash.finish()));
    if !library.exists() {
        compile(&sources.join(format!("{}.cu", module.name)), &library);
    }
    // SAFETY: our own text; nothing runs when it is loaded but constructors of its own state.
    unsafe { Library::new(&library) }.expect("the library was just compiled")
}

/// Beside the test program: it goes with `cargo clean`.
fn folder() -> PathBuf {
    let program = std::env::current_exe().expect("a program knows its file");
    let folder = program.with_file_name("kernel-emulation");
    std::fs::create_dir_all(&folder).expect("the build's own folder can be written");
    folder
}

fn compile(source: &Path, library: &Path) {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    // Under another name until it is whole: other test programs may look for it.
    let unfinished = library.with_extension(format!("{}.tmp", std::process::id()));
    let output = Command::new(&compiler)
        // No fused rounding, but where the text asks for it.
        .args([
            "-std=c++20",
            "-O1",
            "-ffp-contract=off",
            "-fno-strict-aliasing",
        ])
        .args(["-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-DEMULATED"])
        .args(["-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused"])
        .args(["-x", "c++"])
        .arg(source)
        .arg("-o")
        .arg(&unfinished)
        .output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "no C++ compiler ({compiler:?}: {error}) to run the CUDA kernels' text with: install one, \
             or leave these tests out with GIRANDOLE_SKIP_EMULATION=1"
        )
    });
    assert!(
        output.status.success(),
        "{source:?} does not compile for the emulation:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::rename(&unfinished, library).expect("the build's own folder can be written");
}

/// Where the numbers are.
pub(super) fn address(storage: &CpuStorage) -> Result<u64> {
    let pointer: *const c_void = match storage {
        CpuStorage::F32(numbers) => numbers.as_ptr().cast(),
        CpuStorage::F16(numbers) => numbers.as_ptr().cast(),
        CpuStorage::BF16(numbers) => numbers.as_ptr().cast(),
        CpuStorage::U32(numbers) => numbers.as_ptr().cast(),
        _ => bail!("the kernels take f32, f16, bf16 and u32"),
    };
    Ok(pointer.expose_provenance() as u64)
}

/// See [`super::launch::undefined`]: NaNs, so that a number which is not written shows.
pub(super) fn undefined(shape: Shape, dtype: DType) -> Result<Tensor> {
    let count = shape.elem_count();
    match dtype {
        DType::F32 => Tensor::from_vec(vec![f32::NAN; count], shape, &Device::Cpu),
        DType::F16 => Tensor::from_vec(vec![f16::NAN; count], shape, &Device::Cpu),
        DType::BF16 => Tensor::from_vec(vec![bf16::NAN; count], shape, &Device::Cpu),
        DType::U32 => Tensor::from_vec(vec![u32::MAX; count], shape, &Device::Cpu),
        _ => bail!("the kernels take f32, f16, bf16 and u32, not {dtype:?}"),
    }
}
