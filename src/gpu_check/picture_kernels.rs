//! The kernels of picture models, in f32 and, on a card, in f16 and bf16.

use candle_core::{DType, Tensor};

use super::check::{Check, Place};
use super::inputs::{activation, picture, tensor, values, weight};
use super::text_kernels::{allowed, kernel, name_of};
use crate::kernels::image::{
    self, Conv2d, ConvOptions, GroupNorm, LayerNorm, Mask, Padding, add_per_row, concat_channels,
    geglu, gelu_erf, quick_gelu, silu, upsample_nearest_2x,
};
use crate::kernels::linear::Linear;
use crate::model::ModelError;

type Operation = fn(&Place, DType) -> Result<Tensor, ModelError>;

/// Numbers that a format rounds along the way: an activation is rounded after each operation.
const ROUNDINGS: f64 = 2.0;

const OPERATIONS: [(&str, Operation); 19] = [
    ("conv 3 x 3", |place, dtype| conv(place, dtype, 3, 1, 1)),
    ("conv 3 x 3, every other pixel", |place, dtype| {
        conv(place, dtype, 3, 2, 1)
    }),
    ("conv 1 x 1", |place, dtype| conv(place, dtype, 1, 1, 0)),
    ("conv 3 x 3 + residual", |place, dtype| {
        let residual = picture(place, (2, 9, 7, 96), 25, dtype)?;
        Ok(layer(place, dtype, 3, 1, 1)?.forward_add(&pixels(place, dtype)?, &residual)?)
    }),
    ("conv 3 x 3 + a vector per row", |place, dtype| {
        let bias = activation(place, (2, 96), 26, dtype)?;
        Ok(layer(place, dtype, 3, 1, 1)?.forward_add_per_row(&pixels(place, dtype)?, &bias)?)
    }),
    ("group norm of pixels", |place, dtype| {
        Ok(norm(place)?.forward(&pixels(place, dtype)?)?)
    }),
    ("group norm of pixels, silu", |place, dtype| {
        Ok(norm(place)?.forward_silu(&pixels(place, dtype)?)?)
    }),
    ("group norm of tokens", |place, dtype| {
        Ok(norm(place)?.forward(&tokens(place, dtype)?)?)
    }),
    ("layer norm", |place, dtype| {
        let weight = tensor(place, 64, 22, DType::F32)?;
        let bias = tensor(place, 64, 23, DType::F32)?;
        Ok(LayerNorm::new(weight, Some(bias), 1e-5)?.forward(&tokens(place, dtype)?)?)
    }),
    ("linear of tokens", |place, dtype| {
        Ok(image::linear(
            &linear(place, dtype)?,
            &tokens(place, dtype)?,
        )?)
    }),
    ("linear of tokens + residual", |place, dtype| {
        let residual = activation(place, (2, 63, 64), 27, dtype)?;
        let layer = linear(place, dtype)?;
        Ok(image::linear_add(
            &layer,
            &tokens(place, dtype)?,
            &residual,
        )?)
    }),
    ("attention, all to all", |place, dtype| {
        attention(place, dtype, 63, None)
    }),
    ("attention, to 77 tokens of text", |place, dtype| {
        attention(place, dtype, 77, None)
    }),
    ("attention, causal", |place, dtype| {
        attention(place, dtype, 63, Some(Mask::Causal))
    }),
    ("silu, gelu, quick gelu", |place, dtype| {
        let x = (tokens(place, dtype)? * 4.0)?;
        Ok(quick_gelu(&gelu_erf(&silu(&x)?)?)?)
    }),
    ("geglu", |place, dtype| Ok(geglu(&tokens(place, dtype)?)?)),
    ("a vector per row", |place, dtype| {
        let bias = activation(place, (2, 64), 28, dtype)?;
        Ok(add_per_row(&pixels(place, dtype)?, &bias)?)
    }),
    ("twice the size", |place, dtype| {
        Ok(upsample_nearest_2x(&pixels(place, dtype)?)?)
    }),
    ("channels of two pictures", |place, dtype| {
        let other = picture(place, (2, 9, 7, 5), 29, dtype)?;
        Ok(concat_channels(&pixels(place, dtype)?, &other)?)
    }),
];

pub(super) fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, operation) in OPERATIONS {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let name = format!("pictures: {name}, {}", name_of(dtype));
            let allowed = ROUNDINGS * allowed(dtype);
            checks.push(kernel(name, allowed, move |place| {
                Ok(values(&operation(place, dtype)?)?)
            }));
        }
    }
    checks
}

fn pixels(place: &Place, dtype: DType) -> Result<Tensor, ModelError> {
    Ok(picture(place, (2, 9, 7, 64), 20, dtype)?)
}

fn tokens(place: &Place, dtype: DType) -> Result<Tensor, ModelError> {
    Ok(activation(place, (2, 63, 64), 21, dtype)?)
}

fn conv(
    place: &Place,
    dtype: DType,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<Tensor, ModelError> {
    let layer = layer(place, dtype, kernel, stride, padding)?;
    Ok(layer.forward(&pixels(place, dtype)?)?)
}

fn layer(
    place: &Place,
    dtype: DType,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<Conv2d, ModelError> {
    let weight = weight(place, (96, 64, kernel, kernel), 24, dtype)?;
    let bias = tensor(place, 96, 30, dtype)?;
    let options = ConvOptions {
        stride,
        padding: Padding::Same(padding),
    };
    Ok(Conv2d::new(weight, Some(bias), options)?)
}

fn norm(place: &Place) -> Result<GroupNorm, ModelError> {
    let weight = tensor(place, 64, 22, DType::F32)?;
    let bias = tensor(place, 64, 23, DType::F32)?;
    Ok(GroupNorm::new(weight, bias, 8, 1e-5)?)
}

fn linear(place: &Place, dtype: DType) -> Result<Linear, ModelError> {
    let bias = tensor(place, 64, 32, DType::F32)?;
    Ok(Linear::dense(
        weight(place, (64, 64), 31, dtype)?,
        Some(bias),
    )?)
}

/// Eight heads of 8 columns.
fn attention(
    place: &Place,
    dtype: DType,
    keys: usize,
    mask: Option<Mask<'_>>,
) -> Result<Tensor, ModelError> {
    let q = activation(place, (2, 63, 64), 33, dtype)?;
    let k = activation(place, (2, keys, 64), 34, dtype)?;
    let v = activation(place, (2, keys, 64), 35, dtype)?;
    Ok(image::attention(&q, &k, &v, 8, 1.0, mask)?)
}
