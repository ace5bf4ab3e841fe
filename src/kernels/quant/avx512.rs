//! The tile kernel with AVX-512 and VNNI: sixteen columns in the lanes of a register, four products per lane and
//! instruction, the activations broadcast from memory.
#![allow(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::arch::x86_64::*;

use super::activation::ActivationBlock;
use super::format::Format;
use super::tile::{self, QUAD_BYTES};
use crate::kernels::tiled::{Sums, TILE_COLUMNS};

/// As [`super::portable::multiply_tile`], bit for bit.
///
/// # Safety
/// The processor must have the features named. `tile` holds a whole tile of `groups` groups, `panel` all blocks
/// of `R` rows, `sums` at least `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]
pub(super) unsafe fn multiply_tile<F: Format, const R: usize>(
    tile: &[u8],
    groups: usize,
    panel: &[ActivationBlock],
    sums: &mut Sums,
) {
    debug_assert!(tile.len() >= tile::tile_bytes::<F>(groups));
    debug_assert!(panel.len() >= groups * F::GROUP_BLOCKS * R && sums.len() >= R);
    let mut quants = tile.as_ptr();
    let mut panel = panel.as_ptr();
    let mut totals = [_mm512_setzero_ps(); R];
    // SAFETY: all reads stay inside the tile and the panel, whose lengths the caller vouches for: a group's
    // scales are `SCALE_BYTES`, a block's weights `QUANT_BYTES`, a block of the panel `R` activation blocks.
    unsafe {
        for _ in 0..groups {
            let scales = quants.add(F::GROUP_BLOCKS * F::QUANT_BYTES);
            let group_scale = load_f16(scales);
            let group_min = if F::HAS_MIN {
                load_f16(scales.add(2 * TILE_COLUMNS))
            } else {
                _mm512_setzero_ps()
            };
            let mut factors = scales.add(F::SCALE_BYTES - F::GROUP_BLOCKS * F::FACTOR_BYTES);
            for _ in 0..F::GROUP_BLOCKS {
                let mut scale = [group_scale; 2];
                let mut min = group_min;
                if F::GROUP_BLOCKS > 1 {
                    for (half, scale) in scale.iter_mut().enumerate().take(F::HALVES) {
                        *scale =
                            _mm512_mul_ps(group_scale, load_i8(factors.add(half * TILE_COLUMNS)));
                    }
                    if F::HAS_MIN {
                        min = _mm512_mul_ps(
                            group_min,
                            load_i8(factors.add(F::HALVES * TILE_COLUMNS)),
                        );
                    }
                }
                if R > 2 {
                    tile::prefetch::<F>(quants);
                }
                let weights = load_block::<F>(quants);
                for (row, total) in totals.iter_mut().enumerate() {
                    *total = add_block::<F, R>(*total, &weights, &scale, min, panel.add(row));
                }
                quants = quants.add(F::QUANT_BYTES);
                factors = factors.add(F::FACTOR_BYTES);
                panel = panel.add(R);
            }
            quants = scales.add(F::SCALE_BYTES);
        }
        for (sums, total) in sums.iter_mut().zip(totals) {
            _mm512_storeu_ps(sums.as_mut_ptr(), total);
        }
    }
}

/// SAFETY (of the callers): `x` is readable, and the features of [`multiply_tile`] are there.
#[inline(always)]
unsafe fn add_block<F: Format, const R: usize>(
    total: __m512,
    weights: &[__m512i; 8],
    scale: &[__m512; 2],
    min: __m512,
    x: *const ActivationBlock,
) -> __m512 {
    // SAFETY: `x` points to a whole block.
    unsafe {
        let quads = (&raw const (*x).q).cast::<i32>();
        let start = |half: usize| match F::ZERO {
            0 => _mm512_setzero_si512(),
            _ => _mm512_set1_epi32((*x).start[half]),
        };
        let mut dots = [
            start(0),
            if F::HALVES == 2 {
                start(1)
            } else {
                _mm512_setzero_si512()
            },
        ];
        // Two chains hide the latency when few rows do not; integer sums may take any order.
        let two_chains = F::HALVES == 2 || R <= 4;
        for (quad, weights) in weights.iter().enumerate() {
            let chain = if two_chains { quad / 4 } else { 0 };
            dots[chain] = _mm512_dpbusd_epi32(
                dots[chain],
                *weights,
                _mm512_set1_epi32(quads.add(quad).read()),
            );
        }
        let x_scale = _mm512_set1_ps((*x).scale);
        let mut total = total;
        if F::HALVES == 2 {
            for half in 0..2 {
                let dot = _mm512_cvtepi32_ps(dots[half]);
                total = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale[half], x_scale), total);
            }
        } else {
            let dot = if two_chains {
                _mm512_add_epi32(dots[0], dots[1])
            } else {
                dots[0]
            };
            total = _mm512_fmadd_ps(
                _mm512_cvtepi32_ps(dot),
                _mm512_mul_ps(scale[0], x_scale),
                total,
            );
        }
        if F::HAS_MIN {
            _mm512_fmadd_ps(min, _mm512_set1_ps((*x).scaled_sum), total)
        } else {
            total
        }
    }
}

/// The eight quads of a block, a byte per weight.
#[inline(always)]
unsafe fn load_block<F: Format>(quants: *const u8) -> [__m512i; 8] {
    // SAFETY: `quants` points to the `QUANT_BYTES` of a block.
    unsafe {
        let load = |line: usize| _mm512_loadu_si512(quants.add(line * QUAD_BYTES).cast());
        let mut weights = [_mm512_setzero_si512(); 8];
        if F::LOW_BITS == 8 {
            for (quad, weights) in weights.iter_mut().enumerate() {
                *weights = load(quad);
            }
            return weights;
        }
        let nibble = _mm512_set1_epi8(0x0f);
        for line in 0..4 {
            let both = load(line);
            weights[line] = _mm512_and_si512(both, nibble);
            weights[line + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble);
        }
        if F::HIGH_BITS > 0 {
            let mask = _mm512_set1_epi8(if F::HIGH_BITS == 1 { 0x10 } else { 0x30 });
            for (quad, weights) in weights.iter_mut().enumerate() {
                let (line, bit) = if F::HIGH_BITS == 1 {
                    (4, quad)
                } else {
                    (4 + quad / 4, quad % 4 * 2)
                };
                let high = _mm512_and_si512(bit_to_four(load(line), bit), mask);
                *weights = _mm512_or_si512(*weights, high);
            }
        }
        weights
    }
}

/// Moves bit `bit` of each byte to bit 4; bits that come from the neighbour byte are the caller's to mask.
#[inline(always)]
unsafe fn bit_to_four(bytes: __m512i, bit: usize) -> __m512i {
    // SAFETY: only register operations.
    unsafe {
        if bit <= 4 {
            _mm512_sll_epi16(bytes, _mm_cvtsi32_si128(4 - bit as i32))
        } else {
            _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(bit as i32 - 4))
        }
    }
}

#[inline(always)]
unsafe fn load_f16(from: *const u8) -> __m512 {
    // SAFETY: the caller points to sixteen f16.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
}

#[inline(always)]
unsafe fn load_i8(from: *const u8) -> __m512 {
    // SAFETY: the caller points to sixteen bytes.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
}
