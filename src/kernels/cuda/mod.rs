//! Kernels of our own for NVIDIA cards: the `.cu` files beside this one, and what launches them.
//!
//! A launcher is a function over Candle tensors that checks shapes, fills a structure of parameters and launches on the
//! tensors' own stream. It reads nothing back and uploads nothing; what changes from step to step is in tensors. So it may
//! be captured in a CUDA graph, its outputs being allocations of the graph's own.
//!
//! **Where they run.** With the feature `cuda`, `build.rs` compiles the `.cu` files to PTX, which the driver compiles for
//! its card at the first use. In tests the same text is compiled by the machine's C++ compiler, and the same launchers run
//! over tensors of the CPU ([`emulator`]): so grids, parameters and arithmetic are proved without a card, against the
//! kernels of the CPU and against stock Candle. Speed and races are not.
//!
//! The dispatch is in [`super::device_kernels`] and at the head of each function of [`super`].

pub(super) mod attention;
#[cfg(feature = "cuda")]
mod device;
pub(super) mod elementwise;
#[cfg(test)]
mod emulator;
pub(super) mod group_norm;
mod launch;
pub(super) mod norm;
pub(super) mod rope;
pub(super) mod sampling;
#[cfg(test)]
mod test_cases;
