//! What a driver's errors mean, for whoever runs the service: what to do, beside what went wrong.
//!
//! Read off the errors' names, which are the same in every version of the libraries, so that all of it can be tested
//! on a machine without a card.

/// Errors that somebody can do something about.
const ADVICE: &[(&str, &str)] = &[
    (
        "CUDA_ERROR_STUB_LIBRARY",
        "the toolkit's stand-in for the driver was found and not the driver: take its folder `stubs` off \
         LD_LIBRARY_PATH; if there is no other libcuda.so.1, install NVIDIA's driver",
    ),
    (
        "CUDA_ERROR_NO_DEVICE",
        "no NVIDIA card is to be seen: a container needs --gpus, and CUDA_VISIBLE_DEVICES must not hide it",
    ),
    (
        "CUDA_ERROR_INVALID_DEVICE",
        "there is no card of this number: cards are counted from 0, and CUDA_VISIBLE_DEVICES may hide some",
    ),
    (
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "the driver's library is of another version than the driver in the kernel: restart the machine after an \
         update of the driver",
    ),
    (
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "the forward compatibility package does not serve this card: take it off LD_LIBRARY_PATH and use a driver \
         that is new enough",
    ),
    (
        "CUDA_ERROR_SYSTEM_NOT_READY",
        "the machine's cards are not ready: on boards with NVSwitch, nvidia-fabricmanager must run",
    ),
    (
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "the driver is older than the toolkit that the program was built with: update the driver (CUDA 13.0 needs \
         580, CUDA 12.8 needs 570), or build with an older toolkit",
    ),
    (
        "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER",
        "the driver is too old for this program: update it (CUDA 13.0 needs 580, CUDA 12.8 needs 570)",
    ),
    ("CUDA_ERROR_NO_BINARY_FOR_GPU", OTHER_CARD),
    ("CUDA_ERROR_INVALID_PTX", OTHER_CARD),
    (
        "CUDA_ERROR_DEVICE_UNAVAILABLE",
        "another process has the card to itself: see `nvidia-smi -q -d COMPUTE`",
    ),
    (
        "CUDA_ERROR_DEVICE_NOT_LICENSED",
        "this virtual card has no licence for CUDA",
    ),
    (
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "the card's memory is faulty: see `nvidia-smi -q -d ECC`",
    ),
    ("CUDA_ERROR_ILLEGAL_ADDRESS", LOST),
    ("CUDA_ERROR_LAUNCH_FAILED", LOST),
    ("CUDA_ERROR_LAUNCH_TIMEOUT", LOST),
];

const OTHER_CARD: &str = "the program's kernels were not built for this card: build with CUDA_COMPUTE_CAP set to its compute capability \
     without the point (`nvidia-smi --query-gpu=compute_cap --format=csv`; 90 for H100 and H200)";
const LOST: &str = "the card does nothing more for this process: restart the service";

/// How errors say that memory ran out: the driver's, the libraries', Metal's.
const OUT_OF_MEMORY: &[&str] = &[
    "out of memory",
    "cuda_error_out_of_memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "errorcodeoutofmemory",
    "insufficient memory",
];

/// What to do about an error, if somebody can.
pub fn advice(error: &str) -> Option<&'static str> {
    ADVICE
        .iter()
        .find(|(name, _)| names(error, name))
        .map(|(_, advice)| *advice)
}

/// Whether `error` holds this name, and not a longer one.
fn names(error: &str, name: &str) -> bool {
    error.match_indices(name).any(|(at, _)| {
        let next = error[at + name.len()..].chars().next();
        !next.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

/// Whether an error says that the device has no memory left.
pub fn is_out_of_memory(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    OUT_OF_MEMORY.iter().any(|words| error.contains(words))
}

/// An error with what to do about it.
pub fn explained(error: &str) -> String {
    // A trace of calls may follow.
    let first = error.lines().next().unwrap_or_default();
    match advice(error) {
        None => first.to_owned(),
        Some(advice) => format!("{first}: {advice}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cudarc prints errors.
    fn driver(name: &str) -> String {
        format!("DriverError({name}, \"whatever it says\")\n   0: candle_core::error")
    }

    #[test]
    fn each_error_is_told_with_what_to_do() {
        for (name, words) in [
            ("CUDA_ERROR_STUB_LIBRARY", "LD_LIBRARY_PATH"),
            ("CUDA_ERROR_NO_DEVICE", "--gpus"),
            ("CUDA_ERROR_INVALID_DEVICE", "counted from 0"),
            ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "restart the machine"),
            ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "580"),
            ("CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_COMPUTE_CAP"),
            ("CUDA_ERROR_INVALID_PTX", "CUDA_COMPUTE_CAP"),
            ("CUDA_ERROR_DEVICE_UNAVAILABLE", "another process"),
            ("CUDA_ERROR_SYSTEM_NOT_READY", "fabricmanager"),
            ("CUDA_ERROR_ILLEGAL_ADDRESS", "restart the service"),
        ] {
            let told = explained(&driver(name));
            assert!(told.starts_with(&format!("DriverError({name}")), "{told}");
            assert!(told.contains(words), "{told}");
            assert!(!told.contains('\n'), "{told}");
        }
        // A name within a longer one is another's.
        assert_eq!(advice("CUDA_ERROR_INVALID_DEVICE_POINTER"), None);
        assert_eq!(advice("CUDA_ERROR_LAUNCH_FAILED_SOMEHOW"), None);
        assert_eq!(explained("no such thing"), "no such thing");
    }

    #[test]
    fn lack_of_memory_is_known_in_every_dialect() {
        for (error, lacks) in [
            (
                "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
                true,
            ),
            ("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"<Failure>\")", true),
            ("CublasError(CUBLAS_STATUS_ALLOC_FAILED)", true),
            ("Metal error: Insufficient Memory (00000008)", true),
            (
                "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")",
                false,
            ),
            ("shape mismatch in matmul", false),
        ] {
            assert_eq!(is_out_of_memory(error), lacks, "{error}");
        }
    }
}
