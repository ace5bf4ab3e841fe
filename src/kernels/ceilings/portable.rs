//! The loops in plain Rust, for processors without instructions that we know.

use std::hint::black_box;

/// Sums that run side by side, to hide the latency of an addition.
const CHAINS: usize = 8;
/// Products of a chain and turn.
const LANES: usize = 16;

pub(super) fn multiply_floats(turns: usize) -> u64 {
    let (factor, addend) = black_box((0.5f32, 1.0f32));
    let mut sums = [[1f32; LANES]; CHAINS];
    for _ in 0..turns {
        for sum in sums.as_flattened_mut() {
            *sum = sum.mul_add(factor, addend);
        }
    }
    black_box(sums);
    (turns * CHAINS * LANES * 2) as u64
}

pub(super) fn multiply_integers(turns: usize) -> u64 {
    let mut weights = [3u8; LANES];
    let mut sums = [[1i32; LANES]; CHAINS];
    for _ in 0..turns {
        // Hidden, or the compiler would multiply once by the number of turns.
        weights = black_box(weights);
        for (chain, sums) in sums.iter_mut().enumerate() {
            let x = chain as i32 - 4;
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = sum.wrapping_add(i32::from(weight) * x);
            }
        }
    }
    black_box(sums);
    (turns * CHAINS * LANES * 2) as u64
}
