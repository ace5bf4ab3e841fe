//! An output matrix that several threads fill, each its own columns.
#![allow(
    unsafe_code,
    reason = "rows are contiguous, columns are not, so safe slices cannot be split by column; and what is filled \
              need not be zeroed before"
)]

use std::marker::PhantomData;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pages::wish_large;
use super::simd::prefetch;

/// A slice that threads write disjoint parts of.
pub(super) struct SharedOutput<'a> {
    start: *mut f32,
    len: usize,
    /// Elements written so far: whoever fills a vector must leave no gap.
    #[cfg(debug_assertions)]
    written: AtomicUsize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is by `write`, whose callers keep to disjoint parts.
unsafe impl Sync for SharedOutput<'_> {}

impl<'a> SharedOutput<'a> {
    pub(super) fn new(output: &'a mut [f32]) -> Self {
        Self::over(output.as_mut_ptr(), output.len())
    }

    fn over(start: *mut f32, len: usize) -> Self {
        Self {
            start,
            len,
            #[cfg(debug_assertions)]
            written: AtomicUsize::new(0),
            borrow: PhantomData,
        }
    }

    /// Fetches what [`Self::write`] will write to.
    #[inline(always)]
    pub(super) fn prefetch(&self, at: usize) {
        prefetch(self.start.wrapping_add(at));
    }

    /// Copies `values` to `at..`. No two threads may write the same element: kernels cut work so that a task owns
    /// whole output elements.
    #[inline(always)]
    pub(super) fn write(&self, at: usize, values: &[f32]) {
        assert!(
            at <= self.len && values.len() <= self.len - at,
            "write inside the output"
        );
        #[cfg(debug_assertions)]
        self.written.fetch_add(values.len(), Ordering::Relaxed);
        // SAFETY: inside the borrowed slice, which nobody reads meanwhile; disjoint by the contract above.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(at), values.len()) }
    }

    /// As [`Self::write`], of a length that the compiler knows.
    #[inline(always)]
    pub(super) fn write_array<const LEN: usize>(&self, at: usize, values: &[f32; LEN]) {
        assert!(
            at <= self.len && LEN <= self.len - at,
            "write inside the output"
        );
        #[cfg(debug_assertions)]
        self.written.fetch_add(LEN, Ordering::Relaxed);
        // SAFETY: as in `write`; an array of f32 may lie at any f32.
        unsafe { self.start.add(at).cast::<[f32; LEN]>().write(*values) }
    }
}

/// Vectors of these lengths, filled by `fill`.
///
/// # Safety
/// Unless it panics, `fill` writes every element of each.
pub(super) unsafe fn filled(
    lens: &[usize],
    fill: impl FnOnce(&[SharedOutput<'_>]),
) -> Vec<Vec<f32>> {
    let mut vectors: Vec<Vec<f32>> = lens.iter().map(|&len| Vec::with_capacity(len)).collect();
    let outputs: Vec<_> = vectors
        .iter_mut()
        .zip(lens)
        .map(|(vector, &len)| {
            wish_large(vector.as_ptr(), len);
            SharedOutput::over(vector.as_mut_ptr(), len)
        })
        .collect();
    fill(&outputs);
    #[cfg(debug_assertions)]
    for output in &outputs {
        assert_eq!(
            output.written.load(Ordering::Relaxed),
            output.len,
            "every element is written once"
        );
    }
    drop(outputs);
    for (vector, &len) in vectors.iter_mut().zip(lens) {
        // SAFETY: the capacity is at least `len`, and `fill` has written every element by the contract above.
        unsafe { vector.set_len(len) };
    }
    vectors
}
