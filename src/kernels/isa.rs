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
    /// x86-64 with AVX-512 (F, BW, DQ, VL) and VNNI.
    Avx512,
}

impl Isa {
    /// The best set of this processor.
    pub fn detected() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            *Self::available()
                .last()
                .expect("the portable set is always available")
        })
    }

    /// All sets that this processor can run, the best last.
    pub fn available() -> Vec<Self> {
        let mut available = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                available.push(Self::Avx2);
                if has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512dq")
                    && has!("avx512vl")
                    && has!("avx512vnni")
                {
                    available.push(Self::Avx512);
                }
            }
        }
        available
    }
}

/// Defines a function that runs a plain Rust body compiled once per instruction set.
///
/// The body must be `#[inline(always)]`. It fixes the order of its sums itself, so all versions agree bit for bit.
macro_rules! per_isa {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident$(<$generic:ident: $bound:path>)?($($argument:ident: $type:ty),* $(,)?) = $body:path;) => {
        $(#[$attribute])*
        #[allow(unsafe_code, reason = "calls a function compiled for instructions that were found at run time")]
        $visibility fn $name$(<$generic: $bound>)?($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
                fn avx512$(<$generic: $bound>)?($($argument: $type),*) {
                    $body($($argument),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2$(<$generic: $bound>)?($($argument: $type),*) {
                    $body($($argument),*)
                }
                match $crate::kernels::isa::Isa::detected() {
                    // SAFETY: `detected` found these features on this processor.
                    $crate::kernels::isa::Isa::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: as above.
                    $crate::kernels::isa::Isa::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::kernels::isa::Isa::Portable => {}
                }
            }
            $body($($argument),*)
        }
    };
}
pub(super) use per_isa;
