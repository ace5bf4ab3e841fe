//! The tile kernel with 256-bit byte dot products: four products per lane and instruction, eight columns in the
//! lanes of a register.
//!
//! The instruction exists in two encodings, AVX-VNNI's and AVX-512's; all else is the same, so that a processor
//! with either tests what runs on the other.
#![allow(unsafe_code, reason = "vector intrinsics over raw pointers")]

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::activation::ActivationBlock;
use super::format::Format;
use super::half_tile::{self, BlockDots, broadcast_quad, load_quad, start};
use crate::kernels::tiled::Sums;

/// The instruction in one encoding.
trait DotProduct {
    /// Adds to each lane of `sum` four products of an unsigned byte of `weights` and a signed one of `x`.
    ///
    /// # Safety
    /// To be called where the instruction is enabled.
    unsafe fn add(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i;
}

macro_rules! encoding {
    ($(#[$attribute:meta])* $module:ident, $intrinsic:ident, $features:literal) => {
        $(#[$attribute])*
        pub(super) mod $module {
            use super::*;

            struct Instruction;

            impl DotProduct for Instruction {
                #[inline(always)]
                unsafe fn add(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
                    // SAFETY: the caller has enabled the instruction.
                    unsafe { $intrinsic(sum, weights, x) }
                }
            }

            /// As [`portable`](crate::kernels::quant::portable)'s, bit for bit.
            ///
            /// # Safety
            /// The processor must have the features named. `tile` holds a whole tile of `groups` groups, `panel`
            /// all blocks of `R` rows, `sums` at least `R` rows.
            #[target_feature(enable = $features)]
            pub(in crate::kernels::quant) unsafe fn multiply_tile<F: Format, const R: usize>(
                tile: &[u8],
                groups: usize,
                panel: &[ActivationBlock],
                sums: &mut Sums,
            ) {
                // SAFETY: as for this function.
                unsafe {
                    half_tile::multiply_tile::<F, LongSums<Instruction>, R>(tile, groups, panel, sums)
                }
            }
        }
    };
}

encoding! {
    /// AVX-VNNI's encoding.
    vex, _mm256_dpbusd_avx_epi32, "avx2,avxvnni,fma,f16c"
}

encoding! {
    /// AVX-512's encoding.
    evex, _mm256_dpbusd_epi32, "avx2,avx512vl,avx512vnni,fma,f16c"
}

/// Products of bytes, added to 32 bits at once.
struct LongSums<D>(PhantomData<D>);

impl<D: DotProduct> BlockDots for LongSums<D> {
    const FETCHES_AHEAD: bool = true;

    #[inline(always)]
    unsafe fn block_dots<F: Format, const R: usize>(
        quants: *const u8,
        panel: *const ActivationBlock,
    ) -> [[__m256i; 2]; R] {
        // SAFETY: `quants` points to a block of the tile, `panel` to `R` activation blocks.
        unsafe {
            let mut dots = [[_mm256_setzero_si256(); 2]; R];
            for (row, dots) in dots.iter_mut().enumerate() {
                let x = &*panel.add(row);
                *dots = [start::<F>(x, 0), start::<F>(x, 1)];
            }
            // Written out, so that each is compiled with its own shifts.
            add_quad::<F, D, R, 0>(&mut dots, quants, panel);
            add_quad::<F, D, R, 1>(&mut dots, quants, panel);
            add_quad::<F, D, R, 2>(&mut dots, quants, panel);
            add_quad::<F, D, R, 3>(&mut dots, quants, panel);
            add_quad::<F, D, R, 4>(&mut dots, quants, panel);
            add_quad::<F, D, R, 5>(&mut dots, quants, panel);
            add_quad::<F, D, R, 6>(&mut dots, quants, panel);
            add_quad::<F, D, R, 7>(&mut dots, quants, panel);
            if two_chains::<F, R>() && F::HALVES == 1 {
                for dots in &mut dots {
                    dots[0] = _mm256_add_epi32(dots[0], dots[1]);
                }
            }
            dots
        }
    }
}

/// Two chains hide the latency when few rows do not; integer sums may take any order.
const fn two_chains<F: Format, const R: usize>() -> bool {
    F::HALVES == 2 || R <= 2
}

/// The products of one quad, added to the sums of each row.
#[inline(always)]
unsafe fn add_quad<F: Format, D: DotProduct, const R: usize, const QUAD: usize>(
    dots: &mut [[__m256i; 2]; R],
    quants: *const u8,
    panel: *const ActivationBlock,
) {
    let chain = if two_chains::<F, R>() { QUAD / 4 } else { 0 };
    // SAFETY: `quants` points to a block of the tile, `panel` to `R` activation blocks.
    unsafe {
        let weights = load_quad::<F>(quants, QUAD);
        for (row, dots) in dots.iter_mut().enumerate() {
            let x = broadcast_quad(&*panel.add(row), QUAD);
            dots[chain] = D::add(dots[chain], weights, x);
        }
    }
}
