//! What picture models are made of: convolution, normalisation, attention and the small operations between them.
//!
//! **Layout.** A picture activation has the logical shape (rows, height, width, channels) everywhere. On the CPU it is
//! f32 and contiguous in that order, so that a pixel is a row of a matrix product. On other devices the storage is
//! (rows, channels, height, width), what their own operations want, and the tensor is a view of it: each operation turns
//! it back, which costs nothing, and returns such a view. Token activations are (rows, tokens, channels) on all devices.
//!
//! The law of [`super`] holds: on the CPU a row's result depends neither on the other rows nor on the threads.

mod attention;
mod conv;
mod elementwise;
mod finish;
mod group_norm;
mod layer_norm;
mod linear;
mod panel;
mod product;
mod resample;
mod softmax;
pub mod stock;
mod tasks;
#[cfg(test)]
mod test_tensors;
mod winograd;

pub use attention::{Mask, attention};
pub use conv::{Conv2d, ConvOptions, Padding};
pub use elementwise::{add, add_per_row, geglu, gelu_erf, quick_gelu, silu};
pub use group_norm::GroupNorm;
pub use layer_norm::LayerNorm;
pub use linear::{Geglu, Linear, forward_all};
pub use resample::{concat_channels, upsample_nearest, upsample_nearest_2x};
