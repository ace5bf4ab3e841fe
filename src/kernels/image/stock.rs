//! The picture operations said with stock Candle: the path of other devices, and a twin for tests. Not independent of
//! the other rows on the CPU.

use candle_core::{D, DType, Result, Tensor};

use super::{ConvOptions, Mask, Padding};

/// (rows, height, width, channels) -> (rows, channels, height, width), without a copy where it was a view of that.
///
/// # Errors
/// When the rank is not 4.
pub fn channels_first(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 3, 1, 2))?.contiguous()
}

/// (rows, channels, height, width) -> a view of shape (rows, height, width, channels).
///
/// # Errors
/// When the rank is not 4.
pub fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))
}

/// x: (rows, height, width, in), weight: (out, in, kernel height, kernel width) -> (rows, height', width', out).
///
/// # Errors
/// When the shapes do not fit.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: ConvOptions,
) -> Result<Tensor> {
    let dtype = x.dtype();
    let mut x = channels_first(&x.to_dtype(weight.dtype())?)?;
    let padding = match options.padding {
        Padding::Same(padding) => padding,
        Padding::BottomRight => {
            x = x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?;
            0
        }
    };
    let mut y = x.conv2d(weight, padding, options.stride, 1, 1)?;
    if let Some(bias) = bias {
        let bias = bias.reshape((1, (), 1, 1))?;
        y = y.broadcast_add(&bias.to_dtype(y.dtype())?)?;
    }
    channels_last(&y.to_dtype(dtype)?)
}

/// x: (rows, height, width, channels) or (rows, tokens, channels); statistics in f32.
///
/// # Errors
/// When the shapes do not fit.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
) -> Result<Tensor> {
    let dtype = x.dtype();
    // (rows, channels, ..)
    let first = match x.rank() {
        4 => channels_first(x)?,
        _ => x.transpose(1, 2)?.contiguous()?,
    };
    let (rows, channels) = (first.dim(0)?, first.dim(1)?);
    let shape = first.shape().clone();
    let grouped = first.reshape((rows, groups, ()))?.to_dtype(DType::F32)?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let normal = normal.reshape((rows, channels, ()))?;
    let scaled = normal
        .broadcast_mul(&weight.reshape((1, channels, 1))?)?
        .broadcast_add(&bias.reshape((1, channels, 1))?)?
        .to_dtype(dtype)?
        .reshape(shape)?;
    match x.rank() {
        4 => channels_last(&scaled),
        _ => scaled.transpose(1, 2)?.contiguous(),
    }
}

/// Over the last dimension; statistics in f32.
///
/// # Errors
/// When the shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let mut scaled = normal.broadcast_mul(weight)?;
    if let Some(bias) = bias {
        scaled = scaled.broadcast_add(bias)?;
    }
    scaled.to_dtype(x.dtype())
}

/// See [`super::attention`]: scores and weights in f32.
///
/// # Errors
/// When the shapes do not fit.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    scale: f32,
    mask: Option<Mask<'_>>,
) -> Result<Tensor> {
    let (rows, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let split = |x: &Tensor, tokens: usize| {
        x.reshape((rows, tokens, heads, width / heads))?
            .transpose(1, 2)?
            .contiguous()
    };
    let (q, k, v) = (split(q, queries)?, split(k, keys)?, split(v, keys)?);
    let mut scores = (q.matmul(&k.t()?)?.to_dtype(DType::F32)? * f64::from(scale))?;
    if let Some(mask) = mask {
        let hidden: Vec<f32> = match mask {
            Mask::Causal => (0..queries)
                .flat_map(|query| (0..keys).map(move |key| hide(key > query + keys - queries)))
                .collect(),
            Mask::KeyLengths(lengths) => lengths
                .iter()
                .flat_map(|&length| (0..keys).map(move |key| hide(key >= length)))
                .collect(),
        };
        let shape = match mask {
            Mask::Causal => (1, 1, queries, keys),
            Mask::KeyLengths(_) => (rows, 1, 1, keys),
        };
        scores = scores.broadcast_add(&Tensor::from_vec(hidden, shape, q.device())?)?;
    }
    let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
    weights
        .matmul(&v)?
        .transpose(1, 2)?
        .reshape((rows, queries, width))
}

fn hide(hidden: bool) -> f32 {
    if hidden { f32::NEG_INFINITY } else { 0.0 }
}
