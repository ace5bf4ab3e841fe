//! The loops with AVX2 and FMA.
#![allow(unsafe_code, reason = "hides registers from the compiler")]

use std::arch::asm;
use std::arch::x86_64::*;
use std::hint::black_box;

/// Sums that run side by side; sixteen registers hold no more beside the factors.
const FLOAT_CHAINS: usize = 12;
/// Rows that share a weight, as in the product of a panel.
const ROWS: usize = 4;
/// Products of four-bit weights that are added in 16 bits before they are widened.
const QUADS: usize = 8;

#[target_feature(enable = "avx2,fma")]
pub(super) fn multiply_floats(turns: usize) -> u64 {
    let factor = _mm256_set1_ps(black_box(0.5));
    let addend = _mm256_set1_ps(black_box(1.0));
    let mut sums = [addend; FLOAT_CHAINS];
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, addend);
        }
    }
    let mut total = addend;
    for sum in sums {
        total = _mm256_add_ps(total, sum);
    }
    black_box(total);
    (turns * FLOAT_CHAINS * 8 * 2) as u64
}

/// The sums of a block of 32 four-bit weights in eight columns, for four rows: the fewest instructions
/// that any quantised format takes here.
#[target_feature(enable = "avx2")]
pub(super) fn multiply_integers(turns: usize) -> u64 {
    let ones = _mm256_set1_epi16(1);
    let mut weights = _mm256_set1_epi8(3);
    let x = _mm256_set1_epi8(black_box(-5));
    let mut sums = [_mm256_setzero_si256(); ROWS];
    for _ in 0..turns {
        let mut short = [_mm256_setzero_si256(); ROWS];
        for _ in 0..QUADS {
            for short in &mut short {
                // SAFETY: no instruction at all. The compiler has to take the register for changed,
                // and cannot multiply once for all turns.
                unsafe {
                    asm!("/* {0} */", inout(ymm_reg) weights, options(nomem, nostack, preserves_flags));
                }
                *short = _mm256_add_epi16(*short, _mm256_maddubs_epi16(weights, x));
            }
        }
        for (sum, short) in sums.iter_mut().zip(short) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(short, ones));
        }
    }
    let mut total = ones;
    for sum in sums {
        total = _mm256_add_epi32(total, sum);
    }
    black_box(total);
    (turns * QUADS * ROWS * 32 * 2) as u64
}
