//! Which vector instructions this processor has, found once at run time, so that one portable binary is fast
//! everywhere.

use std::sync::OnceLock;

/// An instruction set that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, for any processor.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX2, FMA, F16C and dot products of bytes in 256 bits: AVX-VNNI, or AVX-512 VNNI with VL, which
    /// has the same instruction in another encoding.
    AvxVnni,
    /// x86-64 with AVX-512 (F, BW, DQ, VL) and VNNI.
    Avx512,
    /// Little-endian aarch64 with NEON.
    Neon,
    /// Little-endian aarch64 with NEON and dot products of bytes (dotprod).
    NeonDot,
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Portable => "plain Rust",
            Self::Avx2 => "AVX2",
            Self::AvxVnni => "AVX2 with VNNI",
            Self::Avx512 => "AVX-512 with VNNI",
            Self::Neon => "NEON",
            Self::NeonDot => "NEON with dot products",
        })
    }
}

/// The set that kernels use, once somebody has asked or chosen.
static DETECTED: OnceLock<Isa> = OnceLock::new();

impl Isa {
    /// The set that kernels use: the best of this processor, unless another was chosen.
    pub fn detected() -> Self {
        #[cfg(test)]
        if let Some(forced) = FORCED.get() {
            return forced;
        }
        *DETECTED.get_or_init(|| {
            *Self::available()
                .last()
                .expect("the portable set is always available")
        })
    }

    /// Makes the kernels use this set, if the processor has it and none was used yet; whether they do.
    pub fn choose(self) -> bool {
        Self::available().contains(&self) && *DETECTED.get_or_init(|| self) == self
    }

    /// The set's name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dot",
        }
    }

    /// All sets that this processor can run, the best last.
    pub fn available() -> Vec<Self> {
        let mut available = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                available.push(Self::Avx2);
                let narrow_vnni = has!("avx512vl") && has!("avx512vnni");
                if has!("avxvnni") || narrow_vnni {
                    available.push(Self::AvxVnni);
                }
                if narrow_vnni && has!("avx512f") && has!("avx512bw") && has!("avx512dq") {
                    available.push(Self::Avx512);
                }
            }
        }
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        {
            use std::arch::is_aarch64_feature_detected as has;
            if has!("neon") {
                available.push(Self::Neon);
                if has!("dotprod") {
                    available.push(Self::NeonDot);
                }
            }
        }
        available
    }
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<Option<Isa>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
impl Isa {
    /// Runs `body` with this set, which then counts as detected on this thread. Kernels stay on this thread
    /// meanwhile, because others know nothing of it.
    pub(super) fn force<T>(self, body: impl FnOnce() -> T) -> T {
        let before = FORCED.replace(Some(self));
        let result = body();
        FORCED.set(before);
        result
    }

    /// Whether this thread runs in [`Self::force`].
    pub(super) fn is_forced() -> bool {
        FORCED.get().is_some()
    }

    /// Runs `body` once per available set, in [`Self::force`], and returns the results, the plain one first.
    pub(super) fn for_each<T>(body: impl Fn() -> T) -> Vec<T> {
        let run = |isa: Self| isa.force(&body);
        Self::available().into_iter().map(run).collect()
    }
}

/// Defines a function that runs one body compiled once per instruction set.
///
/// A body is `#[inline(always)]`; written `body<Vector>` it is generic over [`Vector`](super::simd::Vector). It fixes the
/// order of its sums itself, so all versions agree bit for bit.
macro_rules! per_isa {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) = $body:ident<Vector>;) => {
        $crate::kernels::isa::per_isa! {
            @define [$(#[$attribute])* $visibility fn $name] ($($argument: $type),*)
            [$body::<$crate::kernels::simd::x86::Avx512>] [$body::<$crate::kernels::simd::x86::Avx2>]
            [$body::<$crate::kernels::simd::neon::Neon>] [$body::<[f32; 16]>]
        }
    };
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) = $body:ident;) => {
        $crate::kernels::isa::per_isa! {
            @define [$(#[$attribute])* $visibility fn $name] ($($argument: $type),*) [$body] [$body] [$body] [$body]
        }
    };
    (
        @define [$($signature:tt)*] ($($argument:ident: $type:ty),*)
        [$($avx512:tt)*] [$($avx2:tt)*] [$($neon:tt)*] [$($portable:tt)*]
    ) => {
        #[allow(unsafe_code, reason = "calls a function compiled for instructions that were found at run time")]
        $($signature)*($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
                fn avx512($($argument: $type),*) {
                    $($avx512)*($($argument),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($argument: $type),*) {
                    $($avx2)*($($argument),*)
                }
                match $crate::kernels::isa::Isa::detected() {
                    // SAFETY: `detected` found these features on this processor.
                    $crate::kernels::isa::Isa::Avx512 => return unsafe { avx512($($argument),*) },
                    $crate::kernels::isa::Isa::Avx2 | $crate::kernels::isa::Isa::AvxVnni => {
                        // SAFETY: as above.
                        return unsafe { avx2($($argument),*) };
                    }
                    _ => {}
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                #[target_feature(enable = "neon")]
                fn neon($($argument: $type),*) {
                    $($neon)*($($argument),*)
                }
                match $crate::kernels::isa::Isa::detected() {
                    $crate::kernels::isa::Isa::Neon | $crate::kernels::isa::Isa::NeonDot => {
                        // SAFETY: `detected` found this feature on this processor.
                        return unsafe { neon($($argument),*) };
                    }
                    _ => {}
                }
            }
            $($portable)*($($argument),*)
        }
    };
}
pub(super) use per_isa;
