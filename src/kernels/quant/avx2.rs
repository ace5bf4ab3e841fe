//! The tile kernel with AVX2: a tile in two halves of eight columns, products of bytes summed in 16 bits for as
//! long as they fit.
#![allow(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::arch::x86_64::*;

use super::activation::ActivationBlock;
use super::format::Format;
use super::tile::{self, QUAD_BYTES};
use crate::kernels::tiled::{Sums, TILE_COLUMNS};

/// Columns in half a tile.
const COLUMNS: usize = TILE_COLUMNS / 2;

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
    debug_assert!(tile.len() >= tile::tile_bytes::<F>(groups));
    debug_assert!(panel.len() >= groups * F::GROUP_BLOCKS * R && sums.len() >= R);
    for part in 0..2 {
        // SAFETY: as for this function.
        unsafe { multiply_part::<F, R>(tile.as_ptr(), groups, panel.as_ptr(), sums, part) };
    }
}

/// SAFETY (of the callers): as [`multiply_tile`].
#[inline(always)]
unsafe fn multiply_part<F: Format, const R: usize>(
    tile: *const u8,
    groups: usize,
    mut panel: *const ActivationBlock,
    sums: &mut Sums,
    part: usize,
) {
    // SAFETY: all reads stay inside the tile and the panel, whose lengths the caller vouches for: a group's
    // scales are `SCALE_BYTES`, a block's weights `QUANT_BYTES`, a block of the panel `R` activation blocks.
    unsafe {
        let mut totals = [_mm256_setzero_ps(); R];
        let mut quants = tile.add(part * 4 * COLUMNS);
        for _ in 0..groups {
            let scales = quants.add(F::GROUP_BLOCKS * F::QUANT_BYTES - part * 4 * COLUMNS);
            let group_scale = load_f16(scales.add(2 * part * COLUMNS));
            let group_min = match F::HAS_MIN {
                true => load_f16(scales.add(2 * (TILE_COLUMNS + part * COLUMNS))),
                false => _mm256_setzero_ps(),
            };
            let mut factors =
                scales.add(F::SCALE_BYTES - F::GROUP_BLOCKS * F::FACTOR_BYTES + part * COLUMNS);
            for _ in 0..F::GROUP_BLOCKS {
                let mut scale = [group_scale; 2];
                let mut min = group_min;
                if F::GROUP_BLOCKS > 1 {
                    for (half, scale) in scale.iter_mut().enumerate().take(F::HALVES) {
                        *scale =
                            _mm256_mul_ps(group_scale, load_i8(factors.add(half * TILE_COLUMNS)));
                    }
                    if F::HAS_MIN {
                        min = _mm256_mul_ps(
                            group_min,
                            load_i8(factors.add(F::HALVES * TILE_COLUMNS)),
                        );
                    }
                }
                let dots = block_dots::<F, R>(quants, panel);
                for row in 0..R {
                    totals[row] =
                        add_block::<F>(totals[row], dots[row], &scale, min, &*panel.add(row));
                }
                quants = quants.add(F::QUANT_BYTES);
                factors = factors.add(F::FACTOR_BYTES);
                panel = panel.add(R);
            }
            quants = scales.add(F::SCALE_BYTES + part * 4 * COLUMNS);
        }
        for (sums, total) in sums.iter_mut().zip(totals) {
            _mm256_storeu_ps(sums.as_mut_ptr().add(part * COLUMNS), total);
        }
    }
}

/// Quads whose products may be added in 16 bits: 2 * 127 * (largest q) each.
const fn quads_in_16_bits<F: Format>() -> usize {
    match F::LOW_BITS + F::HIGH_BITS {
        4 => 8,
        5 => 4,
        6 => 2,
        _ => 1,
    }
}

/// The integer sums of a block for each row, per half (or all in the first).
#[inline(always)]
unsafe fn block_dots<F: Format, const R: usize>(
    quants: *const u8,
    panel: *const ActivationBlock,
) -> [[__m256i; 2]; R] {
    // SAFETY: `quants` points to a block of the tile, `panel` to `R` activation blocks.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut dots = [[_mm256_setzero_si256(); 2]; R];
        let mut short = [_mm256_setzero_si256(); R];
        for quad in 0..8 {
            let weights = load_quad::<F>(quants, quad);
            let first = quad % quads_in_16_bits::<F>() == 0;
            let last = (quad + 1) % quads_in_16_bits::<F>() == 0;
            let magnitudes = if F::LOW_BITS == 8 {
                _mm256_abs_epi8(weights)
            } else {
                weights
            };
            for row in 0..R {
                let x = (&raw const (*panel.add(row)).q)
                    .cast::<i32>()
                    .add(quad)
                    .read();
                let mut x = _mm256_set1_epi32(x);
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

#[inline(always)]
unsafe fn add_block<F: Format>(
    total: __m256,
    dots: [__m256i; 2],
    scale: &[__m256; 2],
    min: __m256,
    x: &ActivationBlock,
) -> __m256 {
    // SAFETY: only register operations and a reference.
    unsafe {
        let x_scale = _mm256_set1_ps(x.scale);
        let mut total = total;
        for half in 0..F::HALVES {
            // Eight-bit weights were made signed, so their sum needs no start.
            let dot = match F::ZERO != 0 && F::LOW_BITS != 8 {
                true => _mm256_add_epi32(dots[half], _mm256_set1_epi32(x.start[half])),
                false => dots[half],
            };
            total = _mm256_fmadd_ps(
                _mm256_cvtepi32_ps(dot),
                _mm256_mul_ps(scale[half], x_scale),
                total,
            );
        }
        if F::HAS_MIN {
            _mm256_fmadd_ps(min, _mm256_set1_ps(x.scaled_sum), total)
        } else {
            total
        }
    }
}

/// A quad of a block, a byte per weight: unsigned, or signed for 8-bit formats.
#[inline(always)]
unsafe fn load_quad<F: Format>(quants: *const u8, quad: usize) -> __m256i {
    // SAFETY: `quants` points to a block of the tile.
    unsafe {
        let load = |line: usize| _mm256_loadu_si256(quants.add(line * QUAD_BYTES).cast());
        if F::LOW_BITS == 8 {
            return _mm256_xor_si256(load(quad), _mm256_set1_epi8(-128));
        }
        let both = load(quad % 4);
        let shifted = if quad < 4 {
            both
        } else {
            _mm256_srli_epi16::<4>(both)
        };
        let low = _mm256_and_si256(shifted, _mm256_set1_epi8(0x0f));
        if F::HIGH_BITS == 0 {
            return low;
        }
        let mask = _mm256_set1_epi8(if F::HIGH_BITS == 1 { 0x10 } else { 0x30 });
        let (line, bit) = if F::HIGH_BITS == 1 {
            (4, quad)
        } else {
            (4 + quad / 4, quad % 4 * 2)
        };
        _mm256_or_si256(low, _mm256_and_si256(bit_to_four(load(line), bit), mask))
    }
}

/// Moves bit `bit` of each byte to bit 4; bits that come from the neighbour byte are the caller's to mask.
#[inline(always)]
unsafe fn bit_to_four(bytes: __m256i, bit: usize) -> __m256i {
    // SAFETY: only register operations.
    unsafe {
        if bit <= 4 {
            _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(4 - bit as i32))
        } else {
            _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(bit as i32 - 4))
        }
    }
}

#[inline(always)]
unsafe fn load_f16(from: *const u8) -> __m256 {
    // SAFETY: the caller points to eight f16.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
}

#[inline(always)]
unsafe fn load_i8(from: *const u8) -> __m256 {
    // SAFETY: the caller points to eight bytes.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
}
