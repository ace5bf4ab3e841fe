//! The tile kernel with AVX2: products of bytes summed in 16 bits for as long as they fit.
#![allow(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::arch::x86_64::*;

use super::activation::ActivationBlock;
use super::format::Format;
use super::half_tile::{self, BlockDots, broadcast_quad, load_quad, start};
use crate::kernels::tiled::Sums;

/// As [`super::portable::multiply_tile`], bit for bit.
///
/// # Safety
/// The processor must have the features named. `tile` holds a whole tile of `groups` groups, `panel` all blocks
/// of `R` rows, `sums` at least `R` rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply_tile<F: Format, const R: usize>(
    tile: &[u8],
    groups: usize,
    panel: &[ActivationBlock],
    sums: &mut Sums,
) {
    // SAFETY: as for this function.
    unsafe { half_tile::multiply_tile::<F, ShortSums, R>(tile, groups, panel, sums) }
}

/// Products of bytes, added in pairs to 16 bits.
struct ShortSums;

/// Quads whose products may be added in 16 bits: 2 * 127 * (largest q) each.
const fn quads_in_16_bits<F: Format>() -> usize {
    match F::LOW_BITS + F::HIGH_BITS {
        4 => 8,
        5 => 4,
        6 => 2,
        _ => 1,
    }
}

impl BlockDots for ShortSums {
    const FETCHES_AHEAD: bool = false;

    #[inline(always)]
    unsafe fn block_dots<F: Format, const R: usize>(
        quants: *const u8,
        panel: *const ActivationBlock,
    ) -> [[__m256i; 2]; R] {
        // SAFETY: `quants` points to a block of the tile, `panel` to `R` activation blocks.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut dots = [[_mm256_setzero_si256(); 2]; R];
            // Eight-bit weights are made signed below, so their sum needs no start.
            if F::LOW_BITS != 8 {
                for (row, dots) in dots.iter_mut().enumerate() {
                    let x = &*panel.add(row);
                    *dots = [start::<F>(x, 0), start::<F>(x, 1)];
                }
            }
            let mut short = [_mm256_setzero_si256(); R];
            for quad in 0..8 {
                let mut weights = load_quad::<F>(quants, quad);
                let mut magnitudes = weights;
                if F::LOW_BITS == 8 {
                    weights = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
                    magnitudes = _mm256_abs_epi8(weights);
                }
                let first = quad % quads_in_16_bits::<F>() == 0;
                let last = (quad + 1) % quads_in_16_bits::<F>() == 0;
                for row in 0..R {
                    let mut x = broadcast_quad(&*panel.add(row), quad);
                    if F::LOW_BITS == 8 {
                        x = _mm256_sign_epi8(x, weights);
                    }
                    let products = _mm256_maddubs_epi16(magnitudes, x);
                    short[row] = if first {
                        products
                    } else {
                        _mm256_add_epi16(short[row], products)
                    };
                    if last {
                        let half = if F::HALVES == 2 { quad / 4 } else { 0 };
                        dots[row][half] =
                            _mm256_add_epi32(dots[row][half], _mm256_madd_epi16(short[row], ones));
                    }
                }
            }
            dots
        }
    }
}
