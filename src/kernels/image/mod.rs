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
pub use resample::{concat_channels, upsample_nearest, upsample_nearest_2x};

use candle_core::{Result, Tensor};

/// A token-flat layer over `x`: (.., k) of any rank -> (.., n), of the same dtype.
///
/// # Errors
/// When `x` does not fit the layer.
pub fn linear(layer: &super::linear::Linear, x: &Tensor) -> Result<Tensor> {
    let (flat, shape) = flatten(layer, x)?;
    layer.forward(&flat)?.to_dtype(x.dtype())?.reshape(shape)
}

/// x: (.., k), residual: (.., n) -> their product plus `residual`.
///
/// # Errors
/// When `x` or `residual` does not fit the layer.
pub fn linear_add(layer: &super::linear::Linear, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
    let (flat, shape) = flatten(layer, x)?;
    let rows = flat.dim(0)?;
    let residual = residual.reshape((rows, layer.out_features()))?;
    let residual = residual.to_dtype(candle_core::DType::F32)?;
    let sum = layer.forward_add(&flat, &residual)?;
    sum.to_dtype(x.dtype())?.reshape(shape)
}

/// The input as (rows, k), and the shape of the output.
fn flatten(layer: &super::linear::Linear, x: &Tensor) -> Result<(Tensor, Vec<usize>)> {
    let mut shape = x.dims().to_vec();
    let Some(last) = shape.last_mut() else {
        candle_core::bail!("a linear layer takes at least one dimension");
    };
    let k = std::mem::replace(last, layer.out_features());
    let rows = x.elem_count() / k.max(1);
    Ok((x.reshape((rows, k))?, shape))
}
