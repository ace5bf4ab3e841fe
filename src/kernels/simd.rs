//! Sixteen f32 in registers, on every processor: what plain loops over arrays do not reliably become.
//!
//! A kernel is one body over [`Vector`], compiled per instruction set by `per_isa!`. All implementations compute
//! the same bits.
#![allow(
    unsafe_code,
    reason = "vector intrinsics; `per_isa!` only runs a body where its vector may be used"
)]

use half::f16;

/// Sixteen lanes of f32.
///
/// The implementations for a processor's own registers must only run where their instructions exist: inside a function of `per_isa!`.
pub(super) trait Vector: Copy {
    /// Registers that it takes.
    const REGISTERS: usize = 4;
    /// The same number in all lanes.
    fn splat(value: f32) -> Self;
    fn load(from: &[f32; 16]) -> Self;
    fn load_f16(from: &[f16; 16]) -> Self;
    fn store(self, to: &mut [f32; 16]);
    fn store_f16(self, to: &mut [f16; 16]);
    /// `self * factor + addend`, rounded once.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    fn mul(self, factor: Self) -> Self;
    fn add(self, addend: Self) -> Self;
    /// `self - other`
    fn sub(self, other: Self) -> Self;
    /// In each lane `self` where it is larger, else `other`.
    fn max(self, other: Self) -> Self;
}

/// Asks for the cache line at an address, where the processor can be asked.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which may point anywhere.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Sixteen lanes for processors without vectors that we know.
impl Vector for [f32; 16] {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        [value; 16]
    }
    #[inline(always)]
    fn load(from: &[f32; 16]) -> Self {
        *from
    }
    #[inline(always)]
    fn load_f16(from: &[f16; 16]) -> Self {
        from.map(f16::to_f32)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; 16]) {
        *to = self;
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [f16; 16]) {
        *to = self.map(f16::from_f32);
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        std::array::from_fn(|lane| self[lane].mul_add(factor[lane], addend[lane]))
    }
    #[inline(always)]
    fn mul(self, factor: Self) -> Self {
        std::array::from_fn(|lane| self[lane] * factor[lane])
    }
    #[inline(always)]
    fn add(self, addend: Self) -> Self {
        std::array::from_fn(|lane| self[lane] + addend[lane])
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] - other[lane])
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        std::array::from_fn(|lane| {
            if self[lane] > other[lane] {
                self[lane]
            } else {
                other[lane]
            }
        })
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Vector, f16};

    /// One AVX-512 register.
    #[derive(Clone, Copy)]
    pub(in crate::kernels) struct Avx512(__m512);

    // SAFETY (all blocks): register operations, or loads and stores of whole arrays behind references; the
    // instructions exist by the contract of the trait.
    impl Vector for Avx512 {
        const REGISTERS: usize = 1;
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        fn load(from: &[f32; 16]) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
        }
        #[inline(always)]
        fn load_f16(from: &[f16; 16]) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) })
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; 16]) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn store_f16(self, to: &mut [f16; 16]) {
            // SAFETY: see above.
            unsafe {
                let narrow = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
                _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
            }
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
        }
        #[inline(always)]
        fn mul(self, factor: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_mul_ps(self.0, factor.0) })
        }
        #[inline(always)]
        fn add(self, addend: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_add_ps(self.0, addend.0) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_max_ps(self.0, other.0) })
        }
    }

    /// Two AVX2 registers.
    #[derive(Clone, Copy)]
    pub(in crate::kernels) struct Avx2(__m256, __m256);

    // SAFETY (all blocks): as for `Avx512`.
    impl Vector for Avx2 {
        const REGISTERS: usize = 2;
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see above.
            let half = unsafe { _mm256_set1_ps(value) };
            Self(half, half)
        }
        #[inline(always)]
        fn load(from: &[f32; 16]) -> Self {
            // SAFETY: see above.
            unsafe {
                Self(
                    _mm256_loadu_ps(from.as_ptr()),
                    _mm256_loadu_ps(from.as_ptr().add(8)),
                )
            }
        }
        #[inline(always)]
        fn load_f16(from: &[f16; 16]) -> Self {
            let from = from.as_ptr().cast::<__m128i>();
            // SAFETY: see above.
            unsafe {
                Self(
                    _mm256_cvtph_ps(_mm_loadu_si128(from)),
                    _mm256_cvtph_ps(_mm_loadu_si128(from.add(1))),
                )
            }
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; 16]) {
            // SAFETY: see above.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), self.0);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), self.1);
            }
        }
        #[inline(always)]
        fn store_f16(self, to: &mut [f16; 16]) {
            let to = to.as_mut_ptr().cast::<__m128i>();
            // SAFETY: see above.
            unsafe {
                _mm_storeu_si128(to, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
                _mm_storeu_si128(
                    to.add(1),
                    _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1),
                );
            }
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: see above.
            unsafe {
                Self(
                    _mm256_fmadd_ps(self.0, factor.0, addend.0),
                    _mm256_fmadd_ps(self.1, factor.1, addend.1),
                )
            }
        }
        #[inline(always)]
        fn mul(self, factor: Self) -> Self {
            // SAFETY: see above.
            unsafe {
                Self(
                    _mm256_mul_ps(self.0, factor.0),
                    _mm256_mul_ps(self.1, factor.1),
                )
            }
        }
        #[inline(always)]
        fn add(self, addend: Self) -> Self {
            // SAFETY: see above.
            unsafe {
                Self(
                    _mm256_add_ps(self.0, addend.0),
                    _mm256_add_ps(self.1, addend.1),
                )
            }
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe {
                Self(
                    _mm256_sub_ps(self.0, other.0),
                    _mm256_sub_ps(self.1, other.1),
                )
            }
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: see above.
            unsafe {
                Self(
                    _mm256_max_ps(self.0, other.0),
                    _mm256_max_ps(self.1, other.1),
                )
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) mod neon {
    use std::arch::aarch64::*;
    use std::arch::asm;
    use std::array::from_fn;

    use super::{Vector, f16};

    /// Four f16, given as bits, in f32. The standard library's own function for it is younger than the oldest Rust
    /// that we support.
    ///
    /// # Safety
    /// The processor must have NEON.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn widen_f16(from: uint16x4_t) -> float32x4_t {
        let to;
        // SAFETY: only register operations.
        unsafe {
            asm!(
                "fcvtl {to:v}.4s, {from:v}.4h",
                to = lateout(vreg) to,
                from = in(vreg) from,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        to
    }

    /// Four f32 to the nearest f16, as bits.
    ///
    /// # Safety
    /// The processor must have NEON.
    #[inline(always)]
    unsafe fn narrow_f16(from: float32x4_t) -> uint16x4_t {
        let to;
        // SAFETY: only register operations.
        unsafe {
            asm!(
                "fcvtn {to:v}.4h, {from:v}.4s",
                to = lateout(vreg) to,
                from = in(vreg) from,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        to
    }

    /// Four NEON registers.
    #[derive(Clone, Copy)]
    pub(in crate::kernels) struct Neon([float32x4_t; 4]);

    // SAFETY (all blocks): register operations, or loads and stores of a quarter of an array behind a reference; the
    // instructions exist by the contract of the trait.
    impl Vector for Neon {
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see above.
            Self([unsafe { vdupq_n_f32(value) }; 4])
        }
        #[inline(always)]
        fn load(from: &[f32; 16]) -> Self {
            // SAFETY: see above.
            Self(from_fn(|four| unsafe {
                vld1q_f32(from.as_ptr().add(4 * four))
            }))
        }
        #[inline(always)]
        fn load_f16(from: &[f16; 16]) -> Self {
            let from = from.as_ptr().cast::<u16>();
            // SAFETY: see above.
            Self(from_fn(|four| unsafe {
                widen_f16(vld1_u16(from.add(4 * four)))
            }))
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; 16]) {
            for (four, values) in self.0.into_iter().enumerate() {
                // SAFETY: see above.
                unsafe { vst1q_f32(to.as_mut_ptr().add(4 * four), values) }
            }
        }
        #[inline(always)]
        fn store_f16(self, to: &mut [f16; 16]) {
            let to = to.as_mut_ptr().cast::<u16>();
            for (four, values) in self.0.into_iter().enumerate() {
                // SAFETY: see above.
                unsafe { vst1_u16(to.add(4 * four), narrow_f16(values)) }
            }
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: see above.
            Self(from_fn(|four| unsafe {
                vfmaq_f32(addend.0[four], self.0[four], factor.0[four])
            }))
        }
        #[inline(always)]
        fn mul(self, factor: Self) -> Self {
            // SAFETY: see above.
            Self(from_fn(|four| unsafe {
                vmulq_f32(self.0[four], factor.0[four])
            }))
        }
        #[inline(always)]
        fn add(self, addend: Self) -> Self {
            // SAFETY: see above.
            Self(from_fn(|four| unsafe {
                vaddq_f32(self.0[four], addend.0[four])
            }))
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(from_fn(|four| unsafe {
                vsubq_f32(self.0[four], other.0[four])
            }))
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(from_fn(|four| unsafe {
                let larger = vcgtq_f32(self.0[four], other.0[four]);
                vbslq_f32(larger, self.0[four], other.0[four])
            }))
        }
    }
}
