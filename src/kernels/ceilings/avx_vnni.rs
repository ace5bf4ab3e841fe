//! The integer loop with dot products of bytes in 256 bits, in both encodings.

/// Sums that run side by side.
const CHAINS: usize = 12;

macro_rules! integer_loop {
    ($name:ident, $features:literal, $dot:ident) => {
        pub(super) mod $name {
            use std::arch::x86_64::*;
            use std::hint::black_box;

            use super::CHAINS;

            /// One instruction multiplies 32 pairs of bytes and adds four products to each of 8 sums.
            #[target_feature(enable = $features)]
            pub(in crate::kernels::ceilings) fn multiply_integers(turns: usize) -> u64 {
                let weights = _mm256_set1_epi8(black_box(3));
                let x = _mm256_set1_epi8(black_box(-5));
                let mut sums = [_mm256_setzero_si256(); CHAINS];
                for _ in 0..turns {
                    for sum in &mut sums {
                        *sum = $dot(*sum, weights, x);
                    }
                }
                let mut total = weights;
                for sum in sums {
                    total = _mm256_add_epi32(total, sum);
                }
                black_box(_mm256_extract_epi32::<0>(total));
                (turns * CHAINS * 32 * 2) as u64
            }
        }
    };
}

integer_loop!(vex, "avx2,avxvnni", _mm256_dpbusd_avx_epi32);
integer_loop!(evex, "avx2,avx512vl,avx512vnni", _mm256_dpbusd_epi32);
