//! What the tile kernels with 256-bit registers share: a tile in two halves of eight columns, one after the other.
//! They differ in how bytes are multiplied and summed.
#![allow(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::arch::x86_64::*;

use super::activation::ActivationBlock;
use super::format::Format;
use super::tile::{self, QUAD_BYTES};
use crate::kernels::tiled::{Sums, TILE_COLUMNS};

/// Columns in half a tile.
const COLUMNS: usize = TILE_COLUMNS / 2;

/// How bytes are multiplied and summed.
pub(super) trait BlockDots {
    /// Whether it is faster than weights come by themselves, when several rows pass.
    const FETCHES_AHEAD: bool;

    /// The integer sums of a block for each row, per half (or all in the first), as the plain twin has them.
    ///
    /// # Safety
    /// As [`multiply_tile`]: `quants` points to the part of a block, `panel` to `R` activation blocks.
    unsafe fn block_dots<F: Format, const R: usize>(
        quants: *const u8,
        panel: *const ActivationBlock,
    ) -> [[__m256i; 2]; R];
}

/// As [`super::portable::multiply_tile`], bit for bit.
///
/// # Safety
/// To be called where AVX2, FMA, F16C and what `D` needs are enabled. `tile` holds a whole tile of `groups` groups,
/// `panel` all blocks of `R` rows, `sums` at least `R` rows.
#[inline(always)]
pub(super) unsafe fn multiply_tile<F: Format, D: BlockDots, const R: usize>(
    tile: &[u8],
    groups: usize,
    panel: &[ActivationBlock],
    sums: &mut Sums,
) {
    debug_assert!(tile.len() >= tile::tile_bytes::<F>(groups));
    debug_assert!(panel.len() >= groups * F::GROUP_BLOCKS * R && sums.len() >= R);
    for part in 0..2 {
        // SAFETY: as for this function.
        unsafe { multiply_part::<F, D, R>(tile.as_ptr(), groups, panel.as_ptr(), sums, part) };
    }
}

/// SAFETY (of the callers): as [`multiply_tile`].
#[inline(always)]
unsafe fn multiply_part<F: Format, D: BlockDots, const R: usize>(
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
                if D::FETCHES_AHEAD && part == 0 && R > 2 {
                    tile::prefetch::<F>(quants);
                }
                let dots = D::block_dots::<F, R>(quants, panel);
                for row in 0..R {
                    totals[row] =
                        add_block::<F>(totals[row], dots[row], &scale, min, &*panel.add(row));
                }
                quants = quants.add(F::QUANT_BYTES);
                factors = factors.add(F::FACTOR_BYTES);
                panel = panel.add(R);
            }
            // The last step of the second half leads past the tile.
            quants = scales.wrapping_add(F::SCALE_BYTES + part * 4 * COLUMNS);
        }
        for (sums, total) in sums.iter_mut().zip(totals) {
            _mm256_storeu_ps(sums.as_mut_ptr().add(part * COLUMNS), total);
        }
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
            total = _mm256_fmadd_ps(
                _mm256_cvtepi32_ps(dots[half]),
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

/// Where the sum over half `half` of a block begins, when its weights are unsigned.
///
/// # Safety
/// As [`multiply_tile`].
#[inline(always)]
pub(super) unsafe fn start<F: Format>(x: &ActivationBlock, half: usize) -> __m256i {
    // SAFETY: only register operations and a reference.
    unsafe {
        if F::ZERO == 0 || half >= F::HALVES {
            _mm256_setzero_si256()
        } else {
            _mm256_set1_epi32(x.start[half])
        }
    }
}

/// Four activations, in all lanes.
///
/// # Safety
/// As [`multiply_tile`]; `quad` is below 8.
#[inline(always)]
pub(super) unsafe fn broadcast_quad(x: &ActivationBlock, quad: usize) -> __m256i {
    // SAFETY: a block has eight quads.
    unsafe { _mm256_set1_epi32((&raw const x.q).cast::<i32>().add(quad).read()) }
}

/// A quad of a block, an unsigned byte per weight.
///
/// # Safety
/// As [`multiply_tile`]: `quants` points to the part of a block.
#[inline(always)]
pub(super) unsafe fn load_quad<F: Format>(quants: *const u8, quad: usize) -> __m256i {
    // SAFETY: `quants` points to a block of the tile.
    unsafe {
        let load = |line: usize| _mm256_loadu_si256(quants.add(line * QUAD_BYTES).cast());
        if F::LOW_BITS == 8 {
            return load(quad);
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
