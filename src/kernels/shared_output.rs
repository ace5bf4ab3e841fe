//! An output matrix that several threads fill, each its own columns.
#![allow(
    unsafe_code,
    reason = "rows are contiguous, columns are not, so safe slices cannot be split by column"
)]

use std::marker::PhantomData;

/// A slice that threads write disjoint parts of.
pub(super) struct SharedOutput<'a> {
    start: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `write`, whose callers keep to disjoint parts.
unsafe impl Sync for SharedOutput<'_> {}

impl<'a> SharedOutput<'a> {
    pub(super) fn new(output: &'a mut [f32]) -> Self {
        Self {
            start: output.as_mut_ptr(),
            len: output.len(),
            borrow: PhantomData,
        }
    }

    /// Copies `values` to `at..`. No two threads may write the same element: kernels cut work so that a task owns
    /// whole output elements.
    pub(super) fn write(&self, at: usize, values: &[f32]) {
        assert!(
            at <= self.len && values.len() <= self.len - at,
            "write inside the output"
        );
        // SAFETY: inside the borrowed slice, which nobody reads meanwhile; disjoint by the contract above.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(at), values.len()) }
    }
}
