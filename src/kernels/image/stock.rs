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

/// Scores that are held at a time, in f32: 256 MiB, and some copies. All scores of a picture of 1024 pixels would be
/// 8 GiB a row of Stable Diffusion 1.5.
const HELD_SCORES: usize = 64 << 20;

/// See [`super::attention`]: scores and weights in f32, some rows or some queries of a row at a time.
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
    attention_holding(HELD_SCORES, q, k, v, heads, scale, mask)
}

/// Attention that holds at most `held` scores at a time, but those of a query at least.
fn attention_holding(
    held: usize,
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
    // What is added to the scores of all rows, (heads or 1, queries, keys).
    let added = match mask {
        None => None,
        Some(Mask::Causal) => {
            let hidden = (0..queries)
                .flat_map(|query| (0..keys).map(move |key| hide(key > query + keys - queries)))
                .collect();
            Some(Tensor::from_vec(hidden, (1, queries, keys), q.device())?)
        }
        Some(Mask::Bias(bias)) => Some(bias.clone()),
    };
    let queries_at_once = (held / (heads * keys).max(1)).clamp(1, queries.max(1));
    let rows_at_once = (held / (heads * queries * keys).max(1)).clamp(1, rows.max(1));
    let mut of_rows = Vec::new();
    for row in (0..rows).step_by(rows_at_once) {
        let some = |x: &Tensor| x.narrow(0, row, rows_at_once.min(rows - row));
        let (q, k, v) = (some(&q)?, some(&k)?, some(&v)?);
        let keys_turned = k.t()?;
        let mut of_queries = Vec::new();
        for query in (0..queries).step_by(queries_at_once) {
            let count = queries_at_once.min(queries - query);
            let q = q.narrow(2, query, count)?.contiguous()?;
            let mut scores = (q.matmul(&keys_turned)?.to_dtype(DType::F32)? * f64::from(scale))?;
            if let Some(added) = &added {
                scores = scores.broadcast_add(&added.narrow(1, query, count)?)?;
            }
            let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
            of_queries.push(weights.matmul(&v)?);
        }
        of_rows.push(cat(of_queries, 2)?);
    }
    cat(of_rows, 0)?
        .transpose(1, 2)?
        .reshape((rows, queries, width))
}

/// The parts side by side; one alone is not copied.
fn cat(mut parts: Vec<Tensor>, dimension: usize) -> Result<Tensor> {
    match parts.len() {
        1 => Ok(parts.swap_remove(0)),
        _ => Tensor::cat(&parts, dimension),
    }
}

fn hide(hidden: bool) -> f32 {
    if hidden { f32::NEG_INFINITY } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::image::test_tensors::{tensor, values};
    use crate::kernels::test_numbers::largest;

    #[test]
    fn attention_is_the_same_however_many_scores_are_held() {
        let (rows, heads, queries, keys) = (3, 2, 5, 7);
        let (q, k, v) = (
            tensor(&[rows, queries, 8], 1),
            tensor(&[rows, keys, 8], 2),
            tensor(&[rows, keys, 8], 3),
        );
        let bias = tensor(&[heads, queries, keys], 4);
        for mask in [None, Some(Mask::Causal), Some(Mask::Bias(&bias))] {
            let holding = |held| {
                let attended = attention_holding(held, &q, &k, &v, heads, 0.5, mask).unwrap();
                assert_eq!(attended.dims(), q.dims());
                attended
            };
            let row = heads * queries * keys;
            let all = holding(rows * row);
            for held in [2 * row, row, heads * keys * 2, heads * keys, 1] {
                let difference = largest(&values(&(holding(held) - &all).unwrap()));
                assert!(difference < 1e-6, "{held}: {difference}");
            }
        }
    }
}
