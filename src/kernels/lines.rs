//! Memory in whole cache lines, so that tiles start on one.
#![allow(unsafe_code, reason = "a slice of lines is a slice of bytes, aligned")]

/// Sixty-four bytes on their own cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u8; 64]);

impl Line {
    /// All zero.
    pub(super) const ZERO: Self = Self([0; 64]);
}

/// The bytes of lines.
pub(super) fn bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: `Line` is 64 bytes of `u8` without padding, and its size equals its alignment.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

/// The bytes of lines, to be written.
pub(super) fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as `bytes`; any byte is a valid `u8`.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}
