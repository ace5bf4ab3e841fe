//! The inner loop of all products here: a panel of pixels against tiles of sixteen columns.
//!
//! What each sum is, in which order, depends on its pixel and its column alone: the segments one after the other, in
//! each the inputs one after the other, one fused multiply-add each; then the sum is added to what was there.
#![allow(
    unsafe_code,
    reason = "a bounds check per multiply-add would take longer than the multiply-add"
)]

use crate::kernels::isa::per_isa;
use crate::kernels::simd::Vector;

/// Columns of a tile.
pub(super) const COLUMNS: usize = 16;
/// The most inputs of a segment: few pages and cache lines per pixel at a time.
pub(super) const SEGMENT_INPUTS: usize = 64;
/// Numbers from a pixel to the next in a scratch buffer. Known to the compiler, so that the pixels of a panel share one
/// address register; not a power of two, so that they share no cache set.
pub(super) const PIXEL_STRIDE: usize = SEGMENT_INPUTS + 16;

/// Inputs that lie side by side in each pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where the first pixel's begin in the scratch buffer.
    pub start: usize,
    /// So many, at most [`SEGMENT_INPUTS`].
    pub len: usize,
}

/// Whether sums begin at zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    Fresh,
    Add,
}

per_isa! {
    /// x: per segment (pixels, [`PIXEL_STRIDE`]), weights: (tiles, inputs of all segments, 16), sums: (tiles, pixels, 16).
    pub(super) fn multiply(x: &[f32], segments: &[Segment], weights: &[[f32; COLUMNS]], pixels: usize, begin: Begin, sums: &mut [[f32; COLUMNS]]) = multiply_body<Vector>;
}

/// The most pixels of a panel with 32 registers of sixteen lanes: with two tiles 28 sums, two weights and one input.
const WIDE_PANEL: usize = 14;
/// The most otherwise: with one tile and sixteen registers of eight lanes 12 sums, two weights and one input.
const PANEL: usize = 6;

#[inline(always)]
fn multiply_body<V: Vector>(
    x: &[f32],
    segments: &[Segment],
    weights: &[[f32; COLUMNS]],
    pixels: usize,
    begin: Begin,
    sums: &mut [[f32; COLUMNS]],
) {
    if pixels == 0 {
        return;
    }
    let mut inputs = 0;
    for segment in segments {
        inputs += segment.len;
        assert!(
            segment.start + (pixels - 1) * PIXEL_STRIDE + segment.len <= x.len(),
            "all pixels have their inputs"
        );
    }
    let tiles = sums.len() / pixels;
    assert!(
        sums.len() == tiles * pixels && weights.len() == tiles * inputs,
        "weights for all tiles"
    );
    let mut tile = 0;
    while tile < tiles {
        let wide = V::REGISTERS == 1;
        let tiles_at_once = if wide && tile + 2 <= tiles { 2 } else { 1 };
        let weights = &weights[tile * inputs..(tile + tiles_at_once) * inputs];
        let sums = &mut sums[tile * pixels..(tile + tiles_at_once) * pixels];
        let panels = pixels.div_ceil(if wide { WIDE_PANEL } else { PANEL });
        let mut first = 0;
        for index in 1..=panels {
            let end = index * pixels / panels;
            let count = end - first;
            let x = &x[first * PIXEL_STRIDE..];
            // SAFETY: checked above: the segments of each pixel before `end` lie in `x`, there are `inputs` weights per
            // tile, and as many sums as tiles and pixels.
            unsafe {
                // The widths that the registers have no room for are never chosen, and so not compiled.
                if !wide {
                    let count = count.min(PANEL);
                    panel::<V, 1>(x, segments, weights, pixels, begin, sums, first, count);
                } else if tiles_at_once == 2 {
                    panel::<V, 2>(x, segments, weights, pixels, begin, sums, first, count);
                } else {
                    panel::<V, 1>(x, segments, weights, pixels, begin, sums, first, count);
                }
            }
            first = end;
        }
        tile += tiles_at_once;
    }
}

/// Functions for so many pixels, each as many literals as it has pixels, and the choice between them. The steps are written
/// out: in a loop that the compiler leaves a loop, the totals would be in memory.
macro_rules! panels {
    ($choose:ident: $($count:literal $run:ident [$($pixel:literal)*])*) => {
        /// Pixels `first..first + count`, of which `x` begins with the first.
        ///
        /// # Safety
        /// For each of these pixels and each segment, the inputs lie in `x`; `weights` holds the inputs of all segments `T`
        /// times, `sums` has `T` times `pixels`, and `first + count <= pixels`.
        #[inline(always)]
        #[expect(clippy::too_many_arguments, reason = "the parts of one loop")]
        unsafe fn $choose<V: Vector, const T: usize>(
            x: &[f32],
            segments: &[Segment],
            weights: &[[f32; COLUMNS]],
            pixels: usize,
            begin: Begin,
            sums: &mut [[f32; COLUMNS]],
            first: usize,
            count: usize,
        ) {
            debug_assert!(first + count <= pixels && sums.len() == T * pixels);
            // SAFETY: as this function's.
            unsafe {
                let sums = sums.as_mut_ptr().add(first);
                match count {
                    $($count => $run::<V, T>(x, segments, weights, pixels, begin, sums),)*
                    other => unreachable!("no panels of {other} pixels"),
                }
            }
        }
        $(
            /// See the caller.
            #[inline(always)]
            unsafe fn $run<V: Vector, const T: usize>(
                x: &[f32],
                segments: &[Segment],
                weights: &[[f32; COLUMNS]],
                pixels: usize,
                begin: Begin,
                sums: *mut [f32; COLUMNS],
            ) {
                let inputs = weights.len() / T;
                let mut totals = [[V::splat(0.0); T]; $count];
                let mut weight = weights.as_ptr();
                for segment in segments {
                    // SAFETY: the reads are inside `x` and `weights` by the contract of the caller.
                    unsafe {
                        let mut x = x.as_ptr().add(segment.start);
                        for _ in 0..segment.len {
                            let mut loaded = [V::splat(0.0); T];
                            for tile in 0..T {
                                loaded[tile] = V::load(&*weight.add(tile * inputs));
                            }
                            $(
                                let value = V::splat(*x.add($pixel * PIXEL_STRIDE));
                                for tile in 0..T {
                                    totals[$pixel][tile] = value.mul_add(loaded[tile], totals[$pixel][tile]);
                                }
                            )*
                            weight = weight.add(1);
                            x = x.add(1);
                        }
                    }
                }
                // SAFETY: there are `T` times `pixels` sums, of which these pixels are some.
                unsafe {
                    $(
                        for tile in 0..T {
                            let sum = &mut *sums.add(tile * pixels + $pixel);
                            let mut total = totals[$pixel][tile];
                            if begin == Begin::Add {
                                total = V::load(sum).add(total);
                            }
                            total.store(sum);
                        }
                    )*
                }
            }
        )*
    };
}

panels! { panel:
    1 run_1 [0]
    2 run_2 [0 1]
    3 run_3 [0 1 2]
    4 run_4 [0 1 2 3]
    5 run_5 [0 1 2 3 4]
    6 run_6 [0 1 2 3 4 5]
    7 run_7 [0 1 2 3 4 5 6]
    8 run_8 [0 1 2 3 4 5 6 7]
    9 run_9 [0 1 2 3 4 5 6 7 8]
    10 run_10 [0 1 2 3 4 5 6 7 8 9]
    11 run_11 [0 1 2 3 4 5 6 7 8 9 10]
    12 run_12 [0 1 2 3 4 5 6 7 8 9 10 11]
    13 run_13 [0 1 2 3 4 5 6 7 8 9 10 11 12]
    14 run_14 [0 1 2 3 4 5 6 7 8 9 10 11 12 13]
}
