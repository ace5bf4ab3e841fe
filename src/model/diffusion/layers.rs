//! Layers by name: the weights of a place in a component's tree, as the kernels take them.

use candle_core::{DType, Tensor};

use super::weights::Scope;
use crate::kernels::image::{self, Conv2d, ConvOptions, GroupNorm, LayerNorm, Padding};
use crate::kernels::linear::{self, Linear};
use crate::model::ModelError;

/// A 3x3 convolution that keeps the picture's size.
pub(super) const SAME: ConvOptions = ConvOptions {
    stride: 1,
    padding: Padding::Same(1),
};
/// A 3x3 convolution that halves the picture, the UNet's way.
pub(super) const HALVE: ConvOptions = ConvOptions {
    stride: 2,
    padding: Padding::Same(1),
};
/// A 3x3 convolution that halves the picture, the VAE's way.
pub(super) const HALVE_BOTTOM_RIGHT: ConvOptions = ConvOptions {
    stride: 2,
    padding: Padding::BottomRight,
};
/// A 1x1 convolution.
const POINT: ConvOptions = ConvOptions {
    stride: 1,
    padding: Padding::Same(0),
};

/// A linear layer with a bias: weight (n, k), bias (n,).
pub(super) fn linear(scope: &Scope<'_>, k: usize, n: usize) -> Result<Linear, ModelError> {
    let bias = scope.tensor("bias", &[n])?;
    Ok(Linear::dense(scope.tensor("weight", &[n, k])?, Some(bias))?)
}

/// A linear layer without a bias: weight (n, k).
pub(super) fn linear_no_bias(scope: &Scope<'_>, k: usize, n: usize) -> Result<Linear, ModelError> {
    Ok(Linear::dense(scope.tensor("weight", &[n, k])?, None)?)
}

/// A linear layer in f32, whatever the component's dtype.
pub(super) fn linear_f32(
    scope: &Scope<'_>,
    k: usize,
    n: usize,
    has_bias: bool,
) -> Result<Linear, ModelError> {
    let bias = match has_bias {
        true => Some(scope.tensor_f32("bias", &[n])?),
        false => None,
    };
    let weight = scope.tensor_f32("weight", &[n, k])?;
    Ok(Linear::dense(weight, bias)?)
}

/// Linear, SiLU, linear, in f32: what timesteps, scales and whole prompts go through. (rows, inputs) -> (rows, width).
pub(super) struct Embedder {
    first: Linear,
    second: Linear,
}

impl Embedder {
    pub(super) fn load(scope: &Scope<'_>, inputs: usize, width: usize) -> Result<Self, ModelError> {
        Ok(Embedder {
            first: linear_f32(&scope.at("linear_1"), inputs, width, true)?,
            second: linear_f32(&scope.at("linear_2"), width, width, true)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.second.forward(&image::silu(&self.first.forward(x)?)?)
    }
}

/// A 3x3 convolution with a bias.
pub(super) fn conv3x3(
    scope: &Scope<'_>,
    channels_in: usize,
    channels_out: usize,
    options: ConvOptions,
) -> Result<Conv2d, ModelError> {
    let weight = scope.tensor("weight", &[channels_out, channels_in, 3, 3])?;
    let bias = scope.tensor("bias", &[channels_out])?;
    Ok(Conv2d::new(weight, Some(bias), options)?)
}

/// A 1x1 convolution with a bias.
pub(super) fn conv1x1(
    scope: &Scope<'_>,
    channels_in: usize,
    channels_out: usize,
) -> Result<Conv2d, ModelError> {
    let weight = scope.tensor("weight", &[channels_out, channels_in, 1, 1])?;
    let bias = scope.tensor("bias", &[channels_out])?;
    Ok(Conv2d::new(weight, Some(bias), POINT)?)
}

/// A group norm over so many channels.
pub(super) fn group_norm(
    scope: &Scope<'_>,
    channels: usize,
    groups: usize,
    eps: f64,
) -> Result<GroupNorm, ModelError> {
    let weight = scope.tensor_f32("weight", &[channels])?;
    let bias = scope.tensor_f32("bias", &[channels])?;
    Ok(GroupNorm::new(weight, bias, groups, eps)?)
}

/// A layer norm with a bias.
pub(super) fn layer_norm(
    scope: &Scope<'_>,
    width: usize,
    eps: f64,
) -> Result<LayerNorm, ModelError> {
    let weight = scope.tensor_f32("weight", &[width])?;
    let bias = scope.tensor_f32("bias", &[width])?;
    Ok(LayerNorm::new(weight, Some(bias), eps)?)
}

/// Several layers over one input, x: (rows, tokens, k) -> (rows, tokens, n) of each, in the dtype of `x`.
pub(super) fn linears<const LAYERS: usize>(
    layers: [&Linear; LAYERS],
    x: &Tensor,
) -> candle_core::Result<[Tensor; LAYERS]> {
    let (rows, tokens, width) = x.dims3()?;
    let mut outputs = linear::forward_all(layers, &x.reshape((rows * tokens, width))?)?;
    for output in &mut outputs {
        let n = output.dim(1)?;
        *output = output.to_dtype(x.dtype())?.reshape((rows, tokens, n))?;
    }
    Ok(outputs)
}

/// In which numbers a component with weights of this dtype computes: f32 on the CPU, theirs elsewhere.
pub(super) fn compute_dtype(device: &candle_core::Device, weights: DType) -> DType {
    match device.is_cpu() {
        true => DType::F32,
        false => weights,
    }
}
