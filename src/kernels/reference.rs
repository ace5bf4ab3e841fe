//! The kernels said with stock Candle operations: the path of CUDA and Metal, and the twin that tests hold the
//! CPU code against. Plain rather than fast. Not row-invariant on the CPU, so never the CPU path.

use candle_core::{D, DType, Result, Tensor};

use super::attention::{AttentionOptions, PagedKv, TokenLayout};

/// x: (rows, k) f32, weight: (n, k) of any float dtype -> (rows, n) f32.
///
/// # Errors
/// When the shapes do not fit.
pub fn dense_linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.to_dtype(weight.dtype())?
        .matmul(&weight.t()?)?
        .to_dtype(DType::F32)
}

/// See [`super::norm::rms_norm`].
///
/// # Errors
/// When the shapes do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + f64::from(eps))?.sqrt()?)?
        .broadcast_mul(weight)
}

/// See [`super::rope::rope`].
///
/// # Errors
/// When the shapes do not fit.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, positions: &[u32]) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let half = cos.dim(1)?;
    let positions = Tensor::new(positions, x.device())?;
    let cos = cos.index_select(&positions, 0)?.unsqueeze(1)?;
    let sin = sin.index_select(&positions, 0)?.unsqueeze(1)?;
    let first = x.narrow(D::Minus1, 0, half)?;
    let second = x.narrow(D::Minus1, half, half)?;
    let rotated_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let rotated_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    let mut parts = vec![rotated_first, rotated_second];
    if 2 * half < width {
        parts.push(x.narrow(D::Minus1, 2 * half, width - 2 * half)?);
    }
    Tensor::cat(&parts, D::Minus1)
}

/// See [`super::activation::silu_mul`].
///
/// # Errors
/// When the shapes do not fit.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// See [`super::activation::gelu_tanh_mul`].
///
/// # Errors
/// When the shapes do not fit.
pub fn gelu_tanh_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.gelu()? * up
}

/// See [`super::attention::write_kv`].
///
/// # Errors
/// When the shapes do not fit.
pub fn write_kv(kv: &PagedKv, k: &Tensor, v: &Tensor, layout: &TokenLayout) -> Result<()> {
    let (tokens, kv_heads, head_dim) = k.dims3()?;
    let width = kv_heads * head_dim;
    let rows: Vec<u32> = (0..tokens)
        .map(|token| layout.row_of_token(token) as u32)
        .collect();
    let rows = Tensor::from_vec(rows, (tokens, 1), k.device())?
        .broadcast_as((tokens, width))?
        .contiguous()?;
    for (cache, new) in [(&kv.k, k), (&kv.v, v)] {
        let cache_rows = cache.reshape(((), width))?;
        let new = new
            .reshape((tokens, width))?
            .to_dtype(cache.dtype())?
            .contiguous()?;
        cache_rows.scatter_set(&rows, &new, 0)?;
    }
    Ok(())
}

/// See [`super::attention::paged_attention`]. One gather, product, mask and softmax per slot in the pass.
///
/// # Errors
/// When the shapes do not fit.
pub fn paged_attention(
    q: &Tensor,
    kv: &PagedKv,
    layout: &TokenLayout,
    options: &AttentionOptions,
) -> Result<Tensor> {
    let mut outputs = Vec::new();
    let mut token_order = Vec::new();
    for (slot, tokens) in layout.tokens_by_slot() {
        outputs.push(attend_one_slot(q, kv, layout, options, slot, &tokens)?);
        token_order.extend(tokens);
    }
    let mut position_of_token = vec![0u32; token_order.len()];
    for (position, &token) in token_order.iter().enumerate() {
        position_of_token[token as usize] = position as u32;
    }
    Tensor::cat(&outputs, 0)?.index_select(&Tensor::new(position_of_token, q.device())?, 0)
}

/// The queries of one slot: (their number, heads, head_dim) f32.
fn attend_one_slot(
    q: &Tensor,
    kv: &PagedKv,
    layout: &TokenLayout,
    options: &AttentionOptions,
    slot: usize,
    tokens: &[u32],
) -> Result<Tensor> {
    let device = q.device();
    let (_, heads, head_dim) = q.dims3()?;
    let kv_heads = kv.kv_heads();
    let group = heads / kv_heads;
    let queries = tokens.len();
    let positions: Vec<usize> = tokens
        .iter()
        .map(|&token| layout.positions()[token as usize] as usize)
        .collect();
    let context = positions.iter().max().map_or(0, |position| position + 1);

    let rows: Vec<u32> = (0..context)
        .map(|position| layout.row(slot, position) as u32)
        .collect();
    let rows = Tensor::new(rows, device)?;
    let gather = |cache: &Tensor| -> Result<Tensor> {
        let rows = cache
            .reshape(((), kv_heads, head_dim))?
            .index_select(&rows, 0)?;
        rows.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous()
    };
    // (kv_heads, queries * group, head_dim)
    let q = q
        .index_select(&Tensor::new(tokens, device)?, 0)?
        .reshape((queries, kv_heads, group, head_dim))?
        .transpose(0, 1)?
        .reshape((kv_heads, queries * group, head_dim))?
        .contiguous()?;
    let mut scores = (q.matmul(&gather(&kv.k)?.t()?)? * f64::from(options.scale))?;
    if let Some(cap) = options.softcap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    let mask: Vec<f32> = positions
        .iter()
        .flat_map(|&position| {
            let first = options.first_visible(position);
            let row = move |key| {
                if (first..=position).contains(&key) {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            };
            std::iter::repeat_n((0..context).map(row), group).flatten()
        })
        .collect();
    let mask = Tensor::from_vec(mask, (1, queries * group, context), device)?;
    let weights = candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
    weights
        .matmul(&gather(&kv.v)?)?
        .reshape((kv_heads, queries, group, head_dim))?
        .transpose(0, 1)?
        .reshape((queries, heads, head_dim))
}
