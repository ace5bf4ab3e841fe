//! Activations in 8 bits: each block of 32 has its own scale, so that products are sums of small integers.

use super::format::BLOCK;
use crate::kernels::isa::per_isa;

/// Thirty-two activations of one row, with what the kernels need beside them: x ≈ `scale * q`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(16))]
pub(in crate::kernels) struct ActivationBlock {
    /// -127 to 127.
    pub q: [i8; BLOCK],
    /// Largest magnitude / 127; not finite when an activation is not.
    pub scale: f32,
    /// `scale * sum(q)`: what a weight's additive part is multiplied with.
    pub scaled_sum: f32,
    /// `-ZERO * sum(q)` over the halves of the block, or over all of it (in the first) when the format has one
    /// scale per block: where an integer sum over unsigned weights starts.
    pub start: [i32; 2],
}

impl ActivationBlock {
    /// What buffers are filled with.
    pub(super) const EMPTY: Self = Self {
        q: [0; BLOCK],
        scale: 0.0,
        scaled_sum: 0.0,
        start: [0; 2],
    };
}

per_isa! {
    /// Quantises a row `x` (a multiple of 32 long) into `blocks[first]`, `blocks[first + stride]`, ..
    pub(super) fn quantize_row(x: &[f32], zero: i32, halves: usize, blocks: &mut [ActivationBlock], first: usize, stride: usize) = quantize_row_body;
}

#[inline(always)]
fn quantize_row_body(
    x: &[f32],
    zero: i32,
    halves: usize,
    blocks: &mut [ActivationBlock],
    first: usize,
    stride: usize,
) {
    let (x, _) = x.as_chunks::<BLOCK>();
    for (index, x) in x.iter().enumerate() {
        blocks[first + index * stride] = quantize_block(x, zero, halves);
    }
}

#[inline(always)]
fn quantize_block(x: &[f32; BLOCK], zero: i32, halves: usize) -> ActivationBlock {
    // Magnitudes compare as integers do, and then NaN is the largest: it must not be lost.
    let mut largest = 0u32;
    for x in x {
        largest = largest.max(x.to_bits() & 0x7fff_ffff);
    }
    let largest = f32::from_bits(largest);
    // Below this a block counts as zero: 127 / largest must stay finite.
    let inverse = if largest > 1e-30 {
        127.0 / largest
    } else {
        0.0
    };
    // Loops, and no closures: those are compiled for the plainest processor.
    let (mut rounded, mut q) = ([0i32; BLOCK], [0i8; BLOCK]);
    for i in 0..BLOCK {
        rounded[i] = round_to_i32(x[i] * inverse);
        q[i] = rounded[i] as i8;
    }
    let (halves_of_block, _) = rounded.as_chunks::<{ BLOCK / 2 }>();
    let sums = [
        sum_sixteen(halves_of_block[0]),
        sum_sixteen(halves_of_block[1]),
    ];
    let total = sums[0].wrapping_add(sums[1]);
    // One number for infinite and NaN alike: instruction sets differ in what they would make of an infinity.
    let scale = match largest.is_finite() {
        true => largest / 127.0,
        false => f32::NAN,
    };
    let start = if halves == 2 {
        sums.map(|sum| sum.wrapping_mul(-zero))
    } else {
        [total.wrapping_mul(-zero), 0]
    };
    ActivationBlock {
        q,
        scale,
        scaled_sum: scale * total as f32,
        start,
    }
}

/// As a tree of vectors. It wraps when an activation is not finite: then the scale is not finite either.
#[inline(always)]
fn sum_sixteen(mut lanes: [i32; 16]) -> i32 {
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] = lanes[lane].wrapping_add(lanes[lane + width]);
        }
    }
    lanes[0]
}

/// Nearest integer, ties to even, for magnitudes far below 2²²: adding 1.5 * 2²³ leaves it in the low bits. Vectorises
/// on every processor, and does not care about NaN.
#[inline(always)]
fn round_to_i32(x: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    ((x + SHIFT).to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32)
}
