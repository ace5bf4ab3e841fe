//! What the machine could do at best: loops that only read memory, or only multiply, on the kernels'
//! own threads and with the instructions that the kernels use.
//!
//! They tell how much they did; whoever calls them holds the clock. What a product reaches of this is
//! its share of the machine. [`device`] does the same on a card.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
pub mod device;
mod portable;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Result;

use super::isa::{Isa, per_isa};
use super::lines::{Line, Lines, bytes_mut, floats};
use super::math::sum_lanes;
use super::simd::Vector;
use super::threads;

/// Loops per thread and call: a thread that lost its core does not keep the others waiting for long.
const LOOPS_PER_THREAD: usize = 4;

/// Lines that are written at a time, so that every thread touches memory first where it will read.
const LINES_PER_WRITE: usize = 4096;

/// Memory to be read at full speed, of the kind that weights lie in.
pub struct ReadBuffer {
    lines: Lines,
}

impl ReadBuffer {
    /// A buffer of `size` bytes, rounded up to cache lines. It is written once, since untouched memory
    /// is not there yet.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub fn new(size: usize) -> Result<Self> {
        let mut lines = Lines::zeroed(size.div_ceil(size_of::<Line>()))?;
        threads::for_each_chunk(&mut lines, LINES_PER_WRITE, |_, lines| {
            bytes_mut(lines).fill(1);
        });
        Ok(Self { lines })
    }

    /// Reads all of it once; returns how many bytes that were.
    pub fn read(&self) -> u64 {
        threads::for_each_range(self.lines.len(), size_of::<Line>(), |range| {
            let mut sum = 0.0;
            add_lines(floats(&self.lines[range]), &mut sum);
            black_box(sum);
        });
        size_of_val(&*self.lines) as u64
    }
}

/// Lines that are summed side by side: enough to hide an addition's latency.
const LINES_AT_ONCE: usize = 8;

per_isa! {
    /// Adds all numbers in `lines` to `sum`, so that each is really loaded.
    fn add_lines(lines: &[[f32; 16]], sum: &mut f32) = add_lines_body<Vector>;
}

#[inline(always)]
fn add_lines_body<V: Vector>(lines: &[[f32; 16]], sum: &mut f32) {
    let mut sums = [V::splat(0.0); LINES_AT_ONCE];
    let (groups, last) = lines.as_chunks::<LINES_AT_ONCE>();
    for group in groups {
        for line in 0..LINES_AT_ONCE {
            sums[line] = sums[line].add(V::load(&group[line]));
        }
    }
    for line in last {
        sums[0] = sums[0].add(V::load(line));
    }
    for lanes in sums {
        let mut numbers = [0.0; 16];
        lanes.store(&mut numbers);
        *sum += sum_lanes(numbers);
    }
}

/// Multiplies and adds f32 in registers, `turns` turns of a loop several times on every thread. Returns
/// the operations: two for each multiply-add.
pub fn multiply_floats(turns: usize) -> u64 {
    on_all_threads(|| float_loop(Isa::detected(), turns))
}

/// Multiplies and adds 8-bit integers as the quantised kernels do, in registers. Returns the operations:
/// two for each multiply-add.
pub fn multiply_integers(turns: usize) -> u64 {
    on_all_threads(|| integer_loop(Isa::detected(), turns))
}

fn on_all_threads(work: impl Fn() -> u64 + Sync) -> u64 {
    let total = AtomicU64::new(0);
    let loops = threads::compute_threads() * LOOPS_PER_THREAD;
    threads::for_each_range(loops, usize::MAX, |range| {
        for _ in range {
            total.fetch_add(work(), Ordering::Relaxed);
        }
    });
    total.into_inner()
}

#[allow(
    unsafe_code,
    reason = "calls loops compiled for instructions that the processor has"
)]
fn float_loop(isa: Isa, turns: usize) -> u64 {
    match isa {
        // SAFETY: callers pass `Isa::detected` or one of `Isa::available`, which the processor has.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::multiply_floats(turns) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => unsafe { avx2::multiply_floats(turns) },
        _ => portable::multiply_floats(turns),
    }
}

#[allow(
    unsafe_code,
    reason = "calls loops compiled for instructions that the processor has"
)]
fn integer_loop(isa: Isa, turns: usize) -> u64 {
    match isa {
        // SAFETY: as in `float_loop`.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::multiply_integers(turns) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::multiply_integers(turns) },
        // SAFETY: as above, in the encoding that the processor has.
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni if is_x86_feature_detected!("avxvnni") => unsafe {
            avx_vnni::vex::multiply_integers(turns)
        },
        // SAFETY: as above; without AVX-VNNI it is there as a part of AVX-512.
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => unsafe { avx_vnni::evex::multiply_integers(turns) },
        _ => portable::multiply_integers(turns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines_are_read_whatever_the_instructions() {
        let buffer = ReadBuffer::new(1234).unwrap();
        assert_eq!(buffer.read(), 1280, "whole lines");
        let expected = 1280.0 / 4.0 * f32::from_ne_bytes([1; 4]);
        let sums = Isa::for_each(|| {
            let mut sum = 0.0;
            add_lines(floats(&buffer.lines), &mut sum);
            sum
        });
        for sum in sums {
            assert!((sum / expected - 1.0).abs() < 1e-5, "{sum}, {expected}");
        }
    }

    #[test]
    fn operations_grow_with_the_turns() {
        for isa in Isa::available() {
            for count in [float_loop, integer_loop] {
                let once = count(isa, 1);
                assert!(once > 0);
                assert_eq!(count(isa, 10), 10 * once, "{isa:?}");
            }
        }
        let loops = (threads::compute_threads() * LOOPS_PER_THREAD) as u64;
        let isa = Isa::detected();
        assert_eq!(multiply_floats(3), loops * float_loop(isa, 3));
        assert_eq!(multiply_integers(3), loops * integer_loop(isa, 3));
    }
}
