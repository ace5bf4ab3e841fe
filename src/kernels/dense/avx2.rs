//! The tile kernel with AVX2: a tile in two halves of eight columns.
#![allow(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::arch::x86_64::*;

use candle_core::DType;

use super::Element;
use crate::kernels::tiled::{Sums, TILE_COLUMNS};

/// Columns in half a tile.
const COLUMNS: usize = TILE_COLUMNS / 2;

/// As [`super::portable::multiply_tile`], bit for bit.
///
/// # Safety
/// The processor must have the features named. `tile` holds sixteen weights per input, `x` as many inputs of `R`
/// rows, `sums` at least `R` rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply_tile<E: Element, const R: usize>(
    tile: &[u8],
    x: &[f32],
    sums: &mut Sums,
) {
    let inputs = x.len() / R;
    debug_assert!(tile.len() >= inputs * TILE_COLUMNS * E::BYTES && sums.len() >= R);
    for part in 0..2 {
        let mut partial = [[_mm256_setzero_ps(); R]; 2];
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
                let sum = _mm256_add_ps(partial[0][row], partial[1][row]);
                _mm256_storeu_ps(sums.as_mut_ptr().add(part * COLUMNS), sum);
            }
        }
    }
}

/// SAFETY (of the callers): `weights` points to eight elements, `x` to `R` numbers.
#[inline(always)]
unsafe fn add_input<E: Element, const R: usize>(
    weights: *const u8,
    x: *const f32,
    sums: &mut [__m256; R],
) {
    // SAFETY: as above.
    unsafe {
        let weight = load::<E>(weights);
        for (row, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_fmadd_ps(weight, _mm256_set1_ps(*x.add(row)), *sum);
        }
    }
}

#[inline(always)]
unsafe fn load<E: Element>(from: *const u8) -> __m256 {
    // SAFETY: the caller points to eight elements.
    unsafe {
        match E::DTYPE {
            DType::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
            DType::BF16 => {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            }
            _ => _mm256_loadu_ps(from.cast()),
        }
    }
}
