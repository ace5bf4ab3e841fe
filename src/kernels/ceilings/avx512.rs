//! The loops with AVX-512 and VNNI.

use std::arch::x86_64::*;
use std::hint::black_box;

/// Sums that run side by side: two units with a latency of five turns would be full with ten.
const CHAINS: usize = 12;

#[target_feature(enable = "avx512f")]
pub(super) fn multiply_floats(turns: usize) -> u64 {
    let factor = _mm512_set1_ps(black_box(0.5));
    let addend = _mm512_set1_ps(black_box(1.0));
    let mut sums = [addend; CHAINS];
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, addend);
        }
    }
    let total = sums.into_iter().fold(addend, |a, b| _mm512_add_ps(a, b));
    black_box(_mm512_reduce_add_ps(total));
    (turns * CHAINS * 16 * 2) as u64
}

/// One instruction multiplies 64 pairs of bytes and adds four products to each of 16 sums.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn multiply_integers(turns: usize) -> u64 {
    let weights = _mm512_set1_epi8(black_box(3));
    let x = _mm512_set1_epi8(black_box(-5));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, weights, x);
        }
    }
    let total = sums
        .into_iter()
        .fold(weights, |a, b| _mm512_add_epi32(a, b));
    black_box(_mm512_reduce_add_epi32(total));
    (turns * CHAINS * 64 * 2) as u64
}
