//! The tile kernel in plain Rust: the path of other processors, and the twin of the vector kernels, which it
//! equals bit for bit.

use super::activation::ActivationBlock;
use super::format::{BLOCK, Format};
use super::tile;
use crate::kernels::tiled::{MAX_PANEL_ROWS, Sums, TILE_COLUMNS};

/// The sums of one tile for as many rows as `sums` (at most [`MAX_PANEL_ROWS`]). `panel`: blocks of the rows, interleaved by row.
pub(super) fn multiply_tile<F: Format>(
    tile: &[u8],
    groups: usize,
    panel: &[ActivationBlock],
    sums: &mut Sums,
) {
    for column in 0..TILE_COLUMNS {
        let rows = sums.len();
        let mut totals = [0f32; MAX_PANEL_ROWS];
        for block in 0..groups * F::GROUP_BLOCKS {
            let (q, scales, min) = tile::block_of_column::<F>(tile, block, column);
            for (row, total) in totals.iter_mut().take(rows).enumerate() {
                *total = add_block::<F>(*total, &q, scales, min, &panel[block * rows + row]);
            }
        }
        for (sums, total) in sums.iter_mut().zip(totals) {
            sums[column] = total;
        }
    }
}

/// One block's share of an output element. This order of operations is the contract of all kernels.
#[inline(always)]
fn add_block<F: Format>(
    total: f32,
    q: &[u8; BLOCK],
    scales: [f32; 2],
    min: f32,
    x: &ActivationBlock,
) -> f32 {
    let mut total = total;
    let length = BLOCK / F::HALVES;
    for (half, scale) in scales.iter().enumerate().take(F::HALVES) {
        let range = half * length..(half + 1) * length;
        let products = q[range.clone()]
            .iter()
            .zip(&x.q[range])
            .map(|(&q, &x)| i32::from(q) * i32::from(x));
        let dot = x.start[half].wrapping_add(products.sum::<i32>());
        total = (dot as f32).mul_add(scale * x.scale, total);
    }
    if F::HAS_MIN {
        min.mul_add(x.scaled_sum, total)
    } else {
        total
    }
}
