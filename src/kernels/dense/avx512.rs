//! The tile kernel with AVX-512: sixteen columns in a register.
#![allow(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::arch::x86_64::*;

use candle_core::DType;

use super::Element;
use crate::kernels::tiled::{Sums, TILE_COLUMNS};

/// As [`super::portable::multiply_tile`], bit for bit.
///
/// # Safety
/// The processor must have the features named. `tile` holds sixteen weights per input, `x` as many inputs of `R`
/// rows, `sums` at least `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
pub(super) unsafe fn multiply_tile<E: Element, const R: usize>(
    tile: &[u8],
    x: &[f32],
    sums: &mut Sums,
) {
    let inputs = x.len() / R;
    debug_assert!(tile.len() >= inputs * TILE_COLUMNS * E::BYTES && sums.len() >= R);
    let (mut weights, mut x) = (tile.as_ptr(), x.as_ptr());
    let mut partial = [[_mm512_setzero_ps(); R]; 2];
    // SAFETY: one step reads sixteen weights and `R` inputs; there are `inputs` of each.
    unsafe {
        for _ in 0..inputs / 2 {
            for sums in &mut partial {
                add_input::<E, R>(weights, x, sums);
                weights = weights.add(TILE_COLUMNS * E::BYTES);
                x = x.add(R);
            }
        }
        if inputs % 2 == 1 {
            add_input::<E, R>(weights, x, &mut partial[0]);
        }
        for (row, sums) in sums.iter_mut().take(R).enumerate() {
            _mm512_storeu_ps(
                sums.as_mut_ptr(),
                _mm512_add_ps(partial[0][row], partial[1][row]),
            );
        }
    }
}

/// SAFETY (of the callers): `weights` points to sixteen elements, `x` to `R` numbers.
#[inline(always)]
unsafe fn add_input<E: Element, const R: usize>(
    weights: *const u8,
    x: *const f32,
    sums: &mut [__m512; R],
) {
    // SAFETY: as above.
    unsafe {
        let weight = load::<E>(weights);
        for (row, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_fmadd_ps(weight, _mm512_set1_ps(*x.add(row)), *sum);
        }
    }
}

#[inline(always)]
unsafe fn load<E: Element>(from: *const u8) -> __m512 {
    // SAFETY: the caller points to sixteen elements.
    unsafe {
        match E::DTYPE {
            DType::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
            DType::BF16 => {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            }
            _ => _mm512_loadu_ps(from.cast()),
        }
    }
}
