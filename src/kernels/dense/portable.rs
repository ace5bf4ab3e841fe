//! The tile kernel in plain Rust: the path of other processors, and the twin of the vector kernels, which it
//! equals bit for bit.

use super::Element;
use crate::kernels::tiled::{Sums, TILE_COLUMNS};

/// The sums of one tile for the rows of a panel. `x`: inputs of the rows, interleaved by row.
pub(super) fn multiply_tile<E: Element>(tile: &[u8], x: &[f32], sums: &mut Sums) {
    let rows = sums.len();
    for (row, sums) in sums.iter_mut().enumerate() {
        let mut partial = [[0f32; TILE_COLUMNS]; 2];
        for (input, x) in x.chunks_exact(rows).enumerate() {
            let weights = &tile[input * TILE_COLUMNS * E::BYTES..][..TILE_COLUMNS * E::BYTES];
            for (sum, weight) in partial[input % 2]
                .iter_mut()
                .zip(weights.chunks_exact(E::BYTES))
            {
                *sum = E::read(weight).mul_add(x[row], *sum);
            }
        }
        for (sum, (even, odd)) in sums.iter_mut().zip(partial[0].into_iter().zip(partial[1])) {
            *sum = even + odd;
        }
    }
}
