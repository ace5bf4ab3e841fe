//! The tile kernel with NEON: a tile in two halves of eight columns, four columns to a register.
#![allow(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::arch::aarch64::*;

use candle_core::DType;

use super::Element;
use crate::kernels::simd::neon::widen_f16;
use crate::kernels::tiled::{Sums, TILE_COLUMNS};

/// Columns in half a tile.
const COLUMNS: usize = TILE_COLUMNS / 2;

/// As [`super::portable::multiply_tile`], bit for bit.
///
/// # Safety
/// The processor must have the features named. `tile` holds sixteen weights per input, `x` as many inputs of `R`
/// rows, `sums` at least `R` rows.
#[target_feature(enable = "neon")]
pub(super) unsafe fn multiply_tile<E: Element, const R: usize>(
    tile: &[u8],
    x: &[f32],
    sums: &mut Sums,
) {
    let inputs = x.len() / R;
    debug_assert!(tile.len() >= inputs * TILE_COLUMNS * E::BYTES && sums.len() >= R);
    for part in 0..2 {
        let mut partial = [[[vdupq_n_f32(0.0); 2]; R]; 2];
        // SAFETY: one step reads eight weights of this part and `R` inputs; there are `inputs` of each.
        unsafe {
            let mut weights = tile.as_ptr().add(part * COLUMNS * E::BYTES);
            let mut x = x.as_ptr();
            for _ in 0..inputs / 2 {
                for sums in &mut partial {
                    add_input::<E, R>(weights, x, sums);
                    // The last step of the second half leads past the tile.
                    weights = weights.wrapping_add(TILE_COLUMNS * E::BYTES);
                    x = x.add(R);
                }
            }
            if inputs % 2 == 1 {
                add_input::<E, R>(weights, x, &mut partial[0]);
            }
            for (row, sums) in sums.iter_mut().take(R).enumerate() {
                let sums = sums.as_mut_ptr().add(part * COLUMNS);
                for four in 0..2 {
                    let sum = vaddq_f32(partial[0][row][four], partial[1][row][four]);
                    vst1q_f32(sums.add(4 * four), sum);
                }
            }
        }
    }
}

/// SAFETY (of the callers): `weights` points to eight elements, `x` to `R` numbers.
#[inline(always)]
unsafe fn add_input<E: Element, const R: usize>(
    weights: *const u8,
    x: *const f32,
    sums: &mut [[float32x4_t; 2]; R],
) {
    // SAFETY: as above.
    unsafe {
        let weights = load::<E>(weights);
        for (row, sums) in sums.iter_mut().enumerate() {
            for four in 0..2 {
                sums[four] = vfmaq_n_f32(sums[four], weights[four], *x.add(row));
            }
        }
    }
}

#[inline(always)]
unsafe fn load<E: Element>(from: *const u8) -> [float32x4_t; 2] {
    // SAFETY: the caller points to eight elements.
    unsafe {
        if E::BYTES == size_of::<f32>() {
            return [vld1q_f32(from.cast()), vld1q_f32(from.cast::<f32>().add(4))];
        }
        let all = vreinterpretq_u16_u8(vld1q_u8(from));
        let halves = [vget_low_u16(all), vget_high_u16(all)];
        match E::DTYPE {
            DType::F16 => [widen_f16(halves[0]), widen_f16(halves[1])],
            _ => [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(halves[0])),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(halves[1])),
            ],
        }
    }
}
