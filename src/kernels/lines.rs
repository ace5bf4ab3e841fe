//! Memory for weights: whole cache lines, in large pages where the system has them.
//!
//! A decoding step reads every weight once. With small pages the processor looks up an address every few kilobytes,
//! which takes as long as reading; in a virtual machine longer.
#![allow(
    unsafe_code,
    reason = "a slice of lines is a slice of bytes, aligned; weights share a mapping"
)]

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use candle_core::{Result, bail};
use memmap2::MmapMut;

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

/// The lines as sixteen f32 each, whatever those are.
pub(super) fn floats(lines: &[Line]) -> &[[f32; 16]] {
    // SAFETY: a `Line` is as large as sixteen f32 and more strictly aligned; any bits are some f32.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len()) }
}

/// Asked from the system at once, for many weights to share. What is not written takes no room.
const REGION_BYTES: usize = 64 << 20;

/// A mapping that weights share. It goes when the last of them goes.
struct Region {
    /// Zero until written.
    start: *mut Line,
    lines: usize,
    _memory: MmapMut,
}

// SAFETY: a region is reached through the `Lines` in it alone, which do not overlap.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new(bytes: usize) -> Result<Self> {
        let mut memory = match MmapMut::map_anon(bytes) {
            Ok(memory) => memory,
            Err(error) => bail!("out of memory: {bytes} bytes for weights: {error}"),
        };
        // A wish: without large pages it is slower, no more.
        #[cfg(target_os = "linux")]
        if let Err(error) = memory.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "no large pages for weights");
        }
        Ok(Self {
            start: memory.as_mut_ptr().cast(),
            lines: bytes / size_of::<Line>(),
            _memory: memory,
        })
    }
}

/// The region that is being filled, and how many lines of it are taken.
static CURRENT: Mutex<(Weak<Region>, usize)> = Mutex::new((Weak::new(), 0));

/// Lines of their own within a region.
pub(super) struct Lines {
    region: Arc<Region>,
    first: usize,
    len: usize,
}

impl Lines {
    /// So many lines, all zero.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(super) fn zeroed(len: usize) -> Result<Self> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (region, taken) = (current.0.upgrade(), current.1);
        let left = region.as_ref().map_or(0, |region| region.lines - taken);
        if let Some(region) = region
            && len <= left
        {
            current.1 = taken + len;
            return Ok(Self {
                region,
                first: taken,
                len,
            });
        }
        let Some(bytes) = len.checked_mul(size_of::<Line>()) else {
            bail!("out of memory: {len} cache lines for weights");
        };
        let region = Arc::new(Region::new(REGION_BYTES.max(bytes))?);
        // The one with more room is filled next.
        if region.lines - len >= left {
            *current = (Arc::downgrade(&region), len);
        }
        Ok(Self {
            region,
            first: 0,
            len,
        })
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: `zeroed` gave these lines to nobody else, and the region lives as long as they do.
        unsafe { std::slice::from_raw_parts(self.region.start.add(self.first), self.len) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as in `deref`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.region.start.add(self.first), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zero_and_belong_to_one_weight() {
        let mut all: Vec<Lines> = [0, 1, 7, 1000]
            .map(|len| Lines::zeroed(len).unwrap())
            .into();
        assert_eq!(
            all.iter().map(|lines| lines.len()).collect::<Vec<_>>(),
            [0, 1, 7, 1000]
        );
        for (index, lines) in all.iter_mut().enumerate() {
            assert!(bytes(lines).iter().all(|&byte| byte == 0));
            bytes_mut(lines).fill(index as u8 + 1);
        }
        for (index, lines) in all.iter().enumerate() {
            assert_eq!(lines.as_ptr().addr() % 64, 0);
            assert!(bytes(lines).iter().all(|&byte| byte == index as u8 + 1));
        }
    }

    #[test]
    fn more_than_a_region_is_one_piece() {
        let lines = Lines::zeroed(REGION_BYTES / 64 + 1).unwrap();
        assert_eq!(bytes(&lines).len(), REGION_BYTES + 64);
        for len in [usize::MAX / 256, usize::MAX / 64 + 1, usize::MAX] {
            assert!(Lines::zeroed(len).is_err());
        }
    }
}
