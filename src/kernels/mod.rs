//! What stock Candle lacks: matrix products that gain from batching, attention over paged K/V, and the small
//! operations around them; and the one home of `unsafe`.
//!
//! Layers and operations take Candle tensors and dispatch on their device; `logits`, `threads` and `ceilings` are about
//! the host alone. On the CPU our own code runs over the
//! storage slices; on CUDA cards kernels of our own ([`device_kernels`], `cuda/`). Elsewhere, and where there is none of
//! ours, the same thing is said with stock Candle operations ([`reference`]), which also serve as an independent twin
//! in the tests.
//!
//! **The law.** On the CPU every output row is bit for bit independent of how many rows share the call, of
//! their order, and of the number of threads. So the order of every sum is fixed per output element, and
//! Candle's own CPU matrix products, which pick another order for another row count, are never called.
//!
//! What is not here: weights' names, model shapes, sampling. Those belong to `model`.

pub mod activation;
pub mod attention;
pub mod candle_threads;
pub mod ceilings;
mod cuda;
#[cfg(feature = "cuda")]
pub mod cuda_stream;
mod dense;
pub mod device_kernels;
pub mod embedding;
pub mod gather;
pub mod image;
pub mod isa;
pub mod linear;
mod lines;
pub mod logits;
mod math;
pub mod norm;
mod pages;
mod panel;
mod quant;
pub mod reference;
pub mod refill;
pub mod rope;
pub mod sampling;
mod shared_output;
mod simd;
mod tensor_data;
#[cfg(test)]
pub(crate) mod test_numbers;
pub mod threads;
mod tiled;
