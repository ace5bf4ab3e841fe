//! Kernels that do several operations in one launch, against the operations one after another on the processor.

use candle_core::{DType, Tensor};

use super::check::{Check, Place};
use super::inputs::{activation, picture, tensor, values, weight};
use super::text_kernels::{allowed, kernel, name_of};
use crate::kernels::activation::{gelu_tanh_mul, silu_mul};
use crate::kernels::attention::{
    AttentionOptions, HeadNorms, PagedKv, TokenLayout, paged_attention, rotate_and_store,
};
use crate::kernels::gather::{advance, gather_rows};
use crate::kernels::image::GroupNorm;
use crate::kernels::linear::{Linear, forward_all};
use crate::kernels::norm::{add_normed, add_rms_norm, rms_norm_to};
use crate::model::ModelError;

/// A result in 16 bits may be rounded to either neighbour, of a sum that was rounded before.
const ROUNDINGS: f64 = 2.0;
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

type Operation = fn(&Place, DType) -> Result<Vec<f32>, ModelError>;

const OPERATIONS: [(&str, Operation); 9] = [
    ("rms norm", |place, dtype| {
        let x = tensor(place, (33, 576), 1, DType::F32)?;
        let weight = tensor(place, 576, 2, DType::F32)?;
        Ok(values(&rms_norm_to(
            &x,
            &weight,
            1e-5,
            output(place, dtype),
        )?)?)
    }),
    ("sum and its rms norm", |place, dtype| {
        let hidden = tensor(place, (33, 4096), 1, DType::F32)?;
        let delta = activation(place, (33, 4096), 3, dtype)?;
        let weight = tensor(place, 4096, 2, DType::F32)?;
        let dtype = output(place, dtype);
        let (sum, normed) = add_rms_norm(&hidden, &delta, &weight, 1e-5, dtype)?;
        Ok([values(&sum)?, values(&normed)?].concat())
    }),
    ("sum with an rms norm", |place, dtype| {
        let hidden = tensor(place, (33, 576), 1, DType::F32)?;
        let x = activation(place, (33, 576), 3, dtype)?;
        let weight = tensor(place, 576, 2, DType::F32)?;
        Ok(values(&add_normed(&hidden, &x, &weight, 1e-5)?)?)
    }),
    ("silu(gate) * up", |place, dtype| {
        let both = activation(place, (33, 2 * 1536), 5, dtype)?;
        let (gate, up) = (both.narrow(1, 0, 1536)?, both.narrow(1, 1536, 1536)?);
        Ok(values(&silu_mul(&gate, &up)?)?)
    }),
    ("gelu(gate) * up", |place, dtype| {
        let gate = activation(place, (33, 1536), 5, dtype)?;
        let up = activation(place, (33, 1536), 6, dtype)?;
        Ok(values(&gelu_tanh_mul(&gate, &up)?)?)
    }),
    ("products without conversions", |place, dtype| {
        let layer = |rows, seed| -> Result<Linear, ModelError> {
            Ok(Linear::dense(
                weight(place, (rows, 512), seed, dtype)?,
                None,
            )?)
        };
        let (a, b) = (layer(96, 7)?, layer(32, 8)?);
        let x = tensor(place, (33, 512), 9, dtype)?.to_dtype(a.activation_dtype())?;
        let [a, b] = forward_all([&a, &b], &x)?;
        Ok([values(&a)?, values(&b)?].concat())
    }),
    ("norms of heads, rope, pages", |place, dtype| {
        rotate(place, dtype, true, (8, 2, 128, 64))
    }),
    ("half a rope, pages", |place, dtype| {
        rotate(place, dtype, false, (4, 4, 64, 16))
    }),
    ("pictures: group norm of a sum, silu", |place, dtype| {
        let weight = tensor(place, 64, 22, DType::F32)?;
        let bias = tensor(place, 64, 23, DType::F32)?;
        let norm = GroupNorm::new(weight, bias, 8, 1e-5)?;
        let x = picture(place, (2, 9, 7, 64), 20, dtype)?;
        let added = activation(place, (2, 64), 28, dtype)?;
        Ok(values(&norm.forward_silu_after_add(&x, &added)?)?)
    }),
];

pub(super) fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, operation) in OPERATIONS {
        for dtype in DTYPES {
            let name = format!("fused: {name}, {}", name_of(dtype));
            let allowed = ROUNDINGS * allowed(dtype);
            checks.push(kernel(name, allowed, move |place| operation(place, dtype)));
        }
    }
    checks.push(kernel("rows of a matrix".to_owned(), 0.0, |place| {
        let x = tensor(place, (40, 1000), 1, DType::F32)?;
        let index = Tensor::new(&[39u32, 0, 7, 7], &place.device)?;
        Ok(values(&gather_rows(&x, &index)?)?)
    }));
    checks.push(kernel("counters go on".to_owned(), 0.0, |place| {
        let numbers: Vec<u32> = (0..300).collect();
        let numbers = Tensor::new(numbers, &place.device)?;
        advance(&numbers)?;
        advance(&numbers)?;
        Ok(values(&numbers)?)
    }));
    checks
}

/// What a kernel is asked to give: the processor gives f32.
fn output(place: &Place, dtype: DType) -> DType {
    if place.is_cpu() { DType::F32 } else { dtype }
}

/// Queries, keys and values of two rows are turned and stored, and then attended with: what was stored shows in what
/// comes out. `shape`: query heads, their keys' heads, columns, columns that are turned by two.
fn rotate(
    place: &Place,
    dtype: DType,
    has_norms: bool,
    (heads, kv_heads, head_dim, half): (usize, usize, usize, usize),
) -> Result<Vec<f32>, ModelError> {
    let kept = match place.is_cpu() {
        true => DType::F32,
        false => dtype,
    };
    let kv = PagedKv::zeros(4, kv_heads, head_dim, kept, &place.device)?;
    // A prompt of 40 tokens and a row of its own, in blocks that are no neighbours.
    let slots = [vec![0; 40], vec![1]].concat();
    let positions = [(0..40).collect(), vec![0]].concat();
    let layout = TokenLayout::new(slots, positions, vec![vec![3, 1], vec![2]])?;
    let tokens = layout.tokens();
    let q = activation(place, (tokens, heads, head_dim), 40, dtype)?;
    let k = activation(place, (tokens, kv_heads, head_dim), 41, dtype)?;
    let v = activation(place, (tokens, kv_heads, head_dim), 42, dtype)?;
    let angles = tensor(place, (64, half), 43, DType::F32)?;
    let query_norm = tensor(place, head_dim, 44, DType::F32)?;
    let key_norm = tensor(place, head_dim, 45, DType::F32)?;
    let norms = HeadNorms {
        query: has_norms.then_some(&query_norm),
        key: has_norms.then_some(&key_norm),
        eps: 1e-6,
    };
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let q = rotate_and_store(&q, &k, &v, &norms, &cos, &sin, &kv, &layout)?;
    let options = AttentionOptions {
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: None,
        softcap: None,
    };
    let attended = paged_attention(&q, &kv, &layout, &options)?;
    Ok([values(&q)?, values(&attended)?].concat())
}
