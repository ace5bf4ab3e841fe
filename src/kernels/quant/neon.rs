//! The tile kernel with NEON: a tile in two halves of eight columns, four columns to a register, with the dot
//! product instruction where the processor has it.
#![allow(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::activation::ActivationBlock;
use super::format::{BLOCK, Format};
use super::tile::{self, QUAD_BYTES};
use crate::kernels::simd::neon::widen_f16;
use crate::kernels::tiled::{Sums, TILE_COLUMNS};

/// Columns in half a tile.
const COLUMNS: usize = TILE_COLUMNS / 2;

/// One number for each column of half a tile.
type Columns = [float32x4_t; 2];

/// How bytes are multiplied and summed.
trait DotProduct {
    /// Adds to each lane of `sum` the products of four bytes of `weights` with the four bytes of `x` that quad `QUAD`
    /// of it holds.
    ///
    /// # Safety
    /// To be called where the instructions are enabled.
    unsafe fn add<const QUAD: i32>(sum: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t;
}

macro_rules! kernel {
    ($(#[$attribute:meta])* $module:ident, $add:ident, $features:literal) => {
        $(#[$attribute])*
        pub(super) mod $module {
            use super::*;

            struct Instructions;

            impl DotProduct for Instructions {
                #[inline(always)]
                unsafe fn add<const QUAD: i32>(
                    sum: int32x4_t,
                    weights: int8x16_t,
                    x: int8x16_t,
                ) -> int32x4_t {
                    // SAFETY: the caller has enabled the instructions.
                    unsafe { $add::<QUAD>(sum, weights, x) }
                }
            }

            /// As [`portable`](crate::kernels::quant::portable)'s, bit for bit.
            ///
            /// # Safety
            /// The processor must have the features named. `tile` holds a whole tile of `groups` groups, `panel`
            /// all blocks of `R` rows, `sums` at least `R` rows.
            #[target_feature(enable = $features)]
            pub(in crate::kernels::quant) unsafe fn multiply_tile<F: Format, const R: usize>(
                tile: &[u8],
                groups: usize,
                panel: &[ActivationBlock],
                sums: &mut Sums,
            ) {
                debug_assert!(tile.len() >= tile::tile_bytes::<F>(groups));
                debug_assert!(panel.len() >= groups * F::GROUP_BLOCKS * R && sums.len() >= R);
                let (tile, panel) = (tile.as_ptr(), panel.as_ptr());
                for part in 0..2 {
                    // SAFETY: as for this function.
                    unsafe {
                        multiply_part::<F, Instructions, R>(tile, groups, panel, sums, part);
                    }
                }
            }
        }
    };
}

kernel! {
    /// With what all processors have.
    plain, add_products, "neon"
}

kernel! {
    /// With dot products.
    dot, add_dot_product, "neon,dotprod"
}

/// See [`DotProduct::add`]. Two products of -128 and 127 fit 16 bits.
#[inline]
#[target_feature(enable = "neon")]
fn add_products<const QUAD: i32>(sum: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    let x = vreinterpretq_s8_s32(vdupq_laneq_s32::<QUAD>(vreinterpretq_s32_s8(x)));
    let first = vmull_s8(vget_low_s8(weights), vget_low_s8(x));
    let second = vmull_high_s8(weights, x);
    vpadalq_s16(sum, vpaddq_s16(first, second))
}

/// See [`DotProduct::add`]. The standard library's own function for it is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_dot_product<const QUAD: i32>(
    mut sum: int32x4_t,
    weights: int8x16_t,
    x: int8x16_t,
) -> int32x4_t {
    // SAFETY: only register operations.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {weights:v}.16b, {x:v}.4b[{quad}]",
            sum = inout(vreg) sum,
            weights = in(vreg) weights,
            x = in(vreg) x,
            quad = const QUAD,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// SAFETY (of the callers): as `multiply_tile`.
#[inline(always)]
unsafe fn multiply_part<F: Format, D: DotProduct, const R: usize>(
    tile: *const u8,
    groups: usize,
    mut panel: *const ActivationBlock,
    sums: &mut Sums,
    part: usize,
) {
    // SAFETY: all reads stay inside the tile and the panel, whose lengths the caller vouches for: a group's
    // scales are `SCALE_BYTES`, a block's weights `QUANT_BYTES`, a block of the panel `R` activation blocks.
    unsafe {
        let mut totals = [[vdupq_n_f32(0.0); 2]; R];
        let mut quants = tile.add(part * 4 * COLUMNS);
        for _ in 0..groups {
            let scales = quants.add(F::GROUP_BLOCKS * F::QUANT_BYTES - part * 4 * COLUMNS);
            let group_scale = load_f16(scales.add(2 * part * COLUMNS));
            let group_min = match F::HAS_MIN {
                true => load_f16(scales.add(2 * (TILE_COLUMNS + part * COLUMNS))),
                false => [vdupq_n_f32(0.0); 2],
            };
            let mut factors =
                scales.add(F::SCALE_BYTES - F::GROUP_BLOCKS * F::FACTOR_BYTES + part * COLUMNS);
            for _ in 0..F::GROUP_BLOCKS {
                let mut scale = [group_scale; 2];
                let mut min = group_min;
                if F::GROUP_BLOCKS > 1 {
                    for (half, scale) in scale.iter_mut().enumerate().take(F::HALVES) {
                        *scale = multiply(group_scale, load_i8(factors.add(half * TILE_COLUMNS)));
                    }
                    if F::HAS_MIN {
                        min = multiply(group_min, load_i8(factors.add(F::HALVES * TILE_COLUMNS)));
                    }
                }
                add_block::<F, D, R>(&mut totals, quants, panel, &scale, min);
                quants = quants.add(F::QUANT_BYTES);
                factors = factors.add(F::FACTOR_BYTES);
                panel = panel.add(R);
            }
            // The last step of the second half leads past the tile.
            quants = scales.wrapping_add(F::SCALE_BYTES + part * 4 * COLUMNS);
        }
        for (sums, total) in sums.iter_mut().zip(totals) {
            let sums = sums.as_mut_ptr().add(part * COLUMNS);
            vst1q_f32(sums, total[0]);
            vst1q_f32(sums.add(4), total[1]);
        }
    }
}

/// One block's share of the totals of each row.
#[inline(always)]
unsafe fn add_block<F: Format, D: DotProduct, const R: usize>(
    totals: &mut [Columns; R],
    quants: *const u8,
    panel: *const ActivationBlock,
    scale: &[Columns; 2],
    min: Columns,
) {
    // SAFETY: `quants` points to a block of the tile, `panel` to `R` activation blocks.
    unsafe {
        let mut dots = starts::<F, R>(panel, 0);
        add_half::<F, D, R, 0>(&mut dots, quants, panel);
        if F::HALVES == 2 {
            add_scaled(totals, dots, scale[0], panel);
            dots = starts::<F, R>(panel, 1);
        }
        add_half::<F, D, R, 1>(&mut dots, quants, panel);
        add_scaled(totals, dots, scale[F::HALVES - 1], panel);
        if F::HAS_MIN {
            for (row, totals) in totals.iter_mut().enumerate() {
                let scaled_sum = (*panel.add(row)).scaled_sum;
                for four in 0..2 {
                    totals[four] = vfmaq_n_f32(totals[four], min[four], scaled_sum);
                }
            }
        }
    }
}

/// Where the sums of each row begin. Eight-bit weights are made signed, so their sums need no start.
#[inline(always)]
unsafe fn starts<F: Format, const R: usize>(
    panel: *const ActivationBlock,
    half: usize,
) -> [[int32x4_t; 2]; R] {
    // SAFETY: `panel` points to `R` activation blocks.
    unsafe {
        let mut starts = [[vdupq_n_s32(0); 2]; R];
        if F::ZERO != 0 && F::LOW_BITS != 8 {
            for (row, start) in starts.iter_mut().enumerate() {
                *start = [vdupq_n_s32((*panel.add(row)).start[half]); 2];
            }
        }
        starts
    }
}

/// The products of half a block, added to the sums of each row.
#[inline(always)]
unsafe fn add_half<F: Format, D: DotProduct, const R: usize, const HALF: usize>(
    dots: &mut [[int32x4_t; 2]; R],
    quants: *const u8,
    panel: *const ActivationBlock,
) {
    // SAFETY: `quants` points to a block of the tile, `panel` to `R` activation blocks.
    unsafe {
        let mut x = [vdupq_n_s8(0); R];
        for (row, x) in x.iter_mut().enumerate() {
            let q = (&raw const (*panel.add(row)).q).cast::<i8>();
            *x = vld1q_s8(q.add(HALF * BLOCK / 2));
        }
        add_quad::<F, D, R, 0>(dots, quants, 4 * HALF, &x);
        add_quad::<F, D, R, 1>(dots, quants, 4 * HALF, &x);
        add_quad::<F, D, R, 2>(dots, quants, 4 * HALF, &x);
        add_quad::<F, D, R, 3>(dots, quants, 4 * HALF, &x);
    }
}

/// Quad `QUAD` of half a block, whose first quad is `first`. `x`: that half's activations of each row.
#[inline(always)]
unsafe fn add_quad<F: Format, D: DotProduct, const R: usize, const QUAD: i32>(
    dots: &mut [[int32x4_t; 2]; R],
    quants: *const u8,
    first: usize,
    x: &[int8x16_t; R],
) {
    for four in 0..2 {
        // SAFETY: `quants` points to a block of the tile, whose quads have four bytes for each column.
        unsafe {
            let weights = load_quad::<F>(quants.add(16 * four), first + QUAD as usize);
            for (dots, x) in dots.iter_mut().zip(x) {
                dots[four] = D::add::<QUAD>(dots[four], weights, *x);
            }
        }
    }
}

/// `totals + dots * scale * x.scale` for each row.
#[inline(always)]
unsafe fn add_scaled<const R: usize>(
    totals: &mut [Columns; R],
    dots: [[int32x4_t; 2]; R],
    scale: Columns,
    panel: *const ActivationBlock,
) {
    // SAFETY: `panel` points to `R` activation blocks.
    unsafe {
        for (row, (totals, dots)) in totals.iter_mut().zip(dots).enumerate() {
            let x_scale = (*panel.add(row)).scale;
            for four in 0..2 {
                let factor = vmulq_n_f32(scale[four], x_scale);
                totals[four] = vfmaq_f32(totals[four], vcvtq_f32_s32(dots[four]), factor);
            }
        }
    }
}

/// Four columns of a quad, a signed byte per weight: at least zero, but for 8-bit formats.
#[inline(always)]
unsafe fn load_quad<F: Format>(quants: *const u8, quad: usize) -> int8x16_t {
    // SAFETY: `quants` points to these columns of a block of the tile.
    unsafe {
        let load = |line: usize| vld1q_u8(quants.add(line * QUAD_BYTES));
        if F::LOW_BITS == 8 {
            return vreinterpretq_s8_u8(veorq_u8(load(quad), vdupq_n_u8(0x80)));
        }
        let both = load(quad % 4);
        let low = if quad < 4 {
            vandq_u8(both, vdupq_n_u8(0x0f))
        } else {
            vshrq_n_u8::<4>(both)
        };
        if F::HIGH_BITS == 0 {
            return vreinterpretq_s8_u8(low);
        }
        let mask = vdupq_n_u8(if F::HIGH_BITS == 1 { 0x10 } else { 0x30 });
        let (line, bit) = if F::HIGH_BITS == 1 {
            (4, quad)
        } else {
            (4 + quad / 4, quad % 4 * 2)
        };
        // To bit 4; a negative shift goes right.
        let high = vshlq_u8(load(line), vdupq_n_s8(4 - bit as i8));
        vreinterpretq_s8_u8(vorrq_u8(low, vandq_u8(high, mask)))
    }
}

#[inline(always)]
unsafe fn multiply(a: Columns, b: Columns) -> Columns {
    // SAFETY: only register operations.
    unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])] }
}

#[inline(always)]
unsafe fn load_f16(from: *const u8) -> Columns {
    // SAFETY: the caller points to eight f16.
    unsafe {
        let all = vreinterpretq_u16_u8(vld1q_u8(from));
        [widen_f16(vget_low_u16(all)), widen_f16(vget_high_u16(all))]
    }
}

#[inline(always)]
unsafe fn load_i8(from: *const u8) -> Columns {
    // SAFETY: the caller points to eight bytes.
    unsafe {
        let all = vmovl_s8(vld1_s8(from.cast()));
        [
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(all))),
            vcvtq_f32_s32(vmovl_s16(vget_high_s16(all))),
        ]
    }
}
