//! Large pages for large outputs: an output of many megabytes is new memory from the system each time, and with small
//! pages the system's work on it takes longer than filling it.
#![allow(unsafe_code, reason = "the system is asked about memory of ours")]

/// Bytes below which allocators keep memory, so that it is not new.
const LARGE: usize = 8 << 20;

/// `len` zeros, for a large output.
pub(super) fn zeroed(len: usize) -> Vec<f32> {
    let zeros = vec![0f32; len];
    wish_large(zeros.as_ptr(), len);
    zeros
}

/// Asks for large pages behind memory that nobody has touched yet. A wish: without it is slower, no more.
#[cfg(target_os = "linux")]
pub(super) fn wish_large(start: *const f32, len: usize) {
    use std::ffi::{c_int, c_void};

    const HUGE_PAGE: c_int = 14;
    const PAGE: usize = 4096;
    unsafe extern "C" {
        fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int;
    }
    let bytes = len * size_of::<f32>();
    if bytes < LARGE {
        return;
    }
    let skip = start.addr().next_multiple_of(PAGE) - start.addr();
    let inside = (bytes - skip) / PAGE * PAGE;
    // SAFETY: whole pages inside an allocation; this advice changes nothing that a program can see but time. Pages of
    // another size than assumed are refused.
    unsafe {
        madvise(
            start.cast_mut().cast::<c_void>().wrapping_byte_add(skip),
            inside,
            HUGE_PAGE,
        );
    }
}

/// Other systems are not asked.
#[cfg(not(target_os = "linux"))]
pub(super) fn wish_large(_start: *const f32, _len: usize) {}
