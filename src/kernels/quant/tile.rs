//! The packed weight: tiles of sixteen output columns, laid out so that a tile is read once from front to back.
//!
//! A tile holds, group after group, the `q` of the group's blocks and then its scales: one stream, which the processor
//! fetches ahead of the kernel. In a block, four consecutive weights of one
//! column lie side by side, the sixteen columns of such a quad follow each other (64 bytes), and there are eight
//! quads. With 4-bit low planes a byte holds quad `v` in its low and quad `v + 4` in its high nibble; the plane
//! of the higher bits follows. That is the operand order of the dot-product instructions: sixteen lanes, four
//! products each.

use super::format::{BLOCK, Format, Group, MAX_GROUP_BLOCKS};
use crate::kernels::lines::Line;
use crate::kernels::simd;
use crate::kernels::tiled::TILE_COLUMNS;

/// Bytes of a quad of all columns.
pub(super) const QUAD_BYTES: usize = 4 * TILE_COLUMNS;

/// Bytes of a tile over `groups` groups, rounded up to whole lines.
pub(super) fn tile_bytes<F: Format>(groups: usize) -> usize {
    (groups * F::GROUP_BYTES).next_multiple_of(size_of::<Line>())
}

/// Asks for the weights that come after these: tiles lie one after the other, and while several rows pass, the processor
/// alone does not look so far ahead. With one or two it keeps up better by itself.
#[inline(always)]
pub(super) fn prefetch<F: Format>(quants: *const u8) {
    const DISTANCE: usize = 4096;
    for line in 0..(F::GROUP_BYTES / F::GROUP_BLOCKS).div_ceil(QUAD_BYTES) {
        simd::prefetch(quants.wrapping_add(DISTANCE + line * QUAD_BYTES));
    }
}

/// Packs up to sixteen rows of a file into a tile that is all zero before; missing columns stay zero.
///
/// `rows`: the rows' bytes, `row_bytes` each.
pub(super) fn pack_tile<F: Format>(rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    for (column, row) in rows.chunks_exact(row_bytes).enumerate() {
        for (index, bytes) in row.chunks_exact(F::FILE_BYTES).enumerate() {
            let group = F::parse(bytes);
            let tile = &mut tile[index * F::GROUP_BYTES..(index + 1) * F::GROUP_BYTES];
            let (quants, scales) = tile.split_at_mut(F::GROUP_BLOCKS * F::QUANT_BYTES);
            pack_scales::<F>(&group, column, scales);
            for block in 0..F::GROUP_BLOCKS {
                let q = &group.q[block * BLOCK..(block + 1) * BLOCK];
                let quants = &mut quants[block * F::QUANT_BYTES..(block + 1) * F::QUANT_BYTES];
                pack_block::<F>(q, column, quants);
            }
        }
    }
}

fn pack_block<F: Format>(q: &[u8], column: usize, out: &mut [u8]) {
    let low_bytes = F::LOW_BITS * QUAD_BYTES;
    for (quad, values) in q.chunks_exact(4).enumerate() {
        for (byte, &q) in values.iter().enumerate() {
            let lane = 4 * column + byte;
            if F::LOW_BITS == 8 {
                out[quad * QUAD_BYTES + lane] = q;
                continue;
            }
            out[quad % 4 * QUAD_BYTES + lane] |= (q & 15) << (quad / 4 * 4);
            match F::HIGH_BITS {
                1 => out[low_bytes + lane] |= (q >> 4) << quad,
                2 => out[low_bytes + quad / 4 * QUAD_BYTES + lane] |= (q >> 4) << (quad % 4 * 2),
                _ => {}
            }
        }
    }
}

fn pack_scales<F: Format>(group: &Group, column: usize, out: &mut [u8]) {
    out[2 * column..2 * column + 2].copy_from_slice(&group.scale.to_le_bytes());
    if F::HAS_MIN {
        let at = 2 * (TILE_COLUMNS + column);
        out[at..at + 2].copy_from_slice(&group.min.to_le_bytes());
    }
    if F::GROUP_BLOCKS == 1 {
        return;
    }
    let factors = &mut out[F::SCALE_BYTES - F::GROUP_BLOCKS * F::FACTOR_BYTES..];
    for (block, factors) in factors
        .chunks_exact_mut(F::FACTOR_BYTES)
        .take(MAX_GROUP_BLOCKS)
        .enumerate()
    {
        for half in 0..F::HALVES {
            factors[half * TILE_COLUMNS + column] =
                group.scale_factors[block * F::HALVES + half] as u8;
        }
        if F::HAS_MIN {
            factors[F::HALVES * TILE_COLUMNS + column] = group.min_factors[block] as u8;
        }
    }
}

/// The weights of one block of one column, plainly: unsigned `q`, the scale of each half, the additive part.
#[inline(always)]
pub(super) fn block_of_column<F: Format>(
    tile: &[u8],
    block: usize,
    column: usize,
) -> ([u8; BLOCK], [f32; 2], f32) {
    let (group, block) = (block / F::GROUP_BLOCKS, block % F::GROUP_BLOCKS);
    let group = &tile[group * F::GROUP_BYTES..(group + 1) * F::GROUP_BYTES];
    let (quants, scales) = group.split_at(F::GROUP_BLOCKS * F::QUANT_BYTES);
    let quants = &quants[block * F::QUANT_BYTES..(block + 1) * F::QUANT_BYTES];
    let mut q = [0u8; BLOCK];
    for (i, q) in q.iter_mut().enumerate() {
        let (quad, lane) = (i / 4, 4 * column + i % 4);
        if F::LOW_BITS == 8 {
            *q = quants[quad * QUAD_BYTES + lane];
            continue;
        }
        *q = quants[quad % 4 * QUAD_BYTES + lane] >> (quad / 4 * 4) & 15;
        let high = &quants[F::LOW_BITS * QUAD_BYTES..];
        match F::HIGH_BITS {
            1 => *q |= (high[lane] >> quad & 1) << 4,
            2 => *q |= (high[quad / 4 * QUAD_BYTES + lane] >> (quad % 4 * 2) & 3) << 4,
            _ => {}
        }
    }
    let (scales, min) = scales_of_column::<F>(scales, block, column);
    (q, scales, min)
}

#[inline(always)]
fn scales_of_column<F: Format>(group: &[u8], block: usize, column: usize) -> ([f32; 2], f32) {
    let f16_at = |at: usize| half::f16::from_le_bytes([group[2 * at], group[2 * at + 1]]).to_f32();
    let scale = f16_at(column);
    let min = if F::HAS_MIN {
        f16_at(TILE_COLUMNS + column)
    } else {
        0.0
    };
    if F::GROUP_BLOCKS == 1 {
        return ([scale; 2], min);
    }
    let header = F::SCALE_BYTES - F::GROUP_BLOCKS * F::FACTOR_BYTES;
    let factors = &group[header + block * F::FACTOR_BYTES..];
    let factor = |row: usize| f32::from(factors[row * TILE_COLUMNS + column] as i8);
    let min = if F::HAS_MIN {
        min * factor(F::HALVES)
    } else {
        0.0
    };
    ([scale * factor(0), scale * factor(F::HALVES - 1)], min)
}
