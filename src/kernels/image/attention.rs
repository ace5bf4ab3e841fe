//! Attention of every query to every key of its row.

use candle_core::{Device, Result, Tensor, bail};

use super::stock;
use crate::kernels::math::exp;
use crate::kernels::tensor_data::{is_on_cpu, with_slice};
use crate::kernels::threads;

/// What queries do not see.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Query `i` sees the keys `0..=i`.
    Causal,
    /// The queries of row `r` see its first `lengths[r]` keys, at least one.
    KeyLengths(&'a [usize]),
}

/// q: (rows, queries, heads * d), k, v: (rows, keys, heads * d) -> (rows, queries, heads * d),
/// `softmax(scale * q kᵀ) v` per head.
///
/// # Errors
/// When the shapes do not fit, or a mask hides all keys of a query.
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
    if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
        bail!("{width} channels cannot be cut into {heads} heads");
    }
    if k.dims() != [rows, keys, width] || v.dims() != k.dims() || keys == 0 {
        bail!(
            "queries of shape {:?} do not fit keys {:?} and values {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    match mask {
        Some(Mask::Causal) if queries > keys => {
            bail!("{queries} causal queries have only {keys} keys")
        }
        Some(Mask::KeyLengths(lengths))
            if lengths.len() != rows || lengths.iter().any(|&len| len == 0 || len > keys) =>
        {
            bail!("key lengths {lengths:?} do not fit {rows} rows of {keys} keys")
        }
        _ => {}
    }
    if !is_on_cpu(q) {
        return stock::attention(q, k, v, heads, scale, mask);
    }
    let head_dim = width / heads;
    let mut output = vec![0f32; rows * queries * width];
    with_slice::<f32, _>(q, |q| {
        with_slice::<f32, _>(k, |k| {
            with_slice::<f32, _>(v, |v| {
                threads::for_each_chunk(&mut output, width, |token, output| {
                    let (row, query) = (token / queries, token % queries);
                    let seen = match mask {
                        None => keys,
                        Some(Mask::Causal) => query + 1,
                        Some(Mask::KeyLengths(lengths)) => lengths[row],
                    };
                    let range = row * keys * width..(row * keys + seen) * width;
                    let (k, v) = (&k[range.clone()], &v[range]);
                    let q = &q[token * width..(token + 1) * width];
                    for head in 0..heads {
                        let head = head * head_dim..(head + 1) * head_dim;
                        let output = &mut output[head.clone()];
                        attend(&q[head.clone()], k, v, width, head.start, scale, output);
                    }
                });
                Ok(())
            })
        })
    })?;
    Tensor::from_vec(output, (rows, queries, width), &Device::Cpu)
}

/// One head of one query. k, v: (keys, width), the head's columns from `start`.
fn attend(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    width: usize,
    start: usize,
    scale: f32,
    output: &mut [f32],
) {
    let columns = start..start + q.len();
    let mut scores: Vec<f32> = k
        .chunks_exact(width)
        .map(|key| {
            let products = q.iter().zip(&key[columns.clone()]);
            scale * products.fold(0f32, |sum, (q, k)| q.mul_add(*k, sum))
        })
        .collect();
    let largest = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let mut total = 0f32;
    for score in &mut scores {
        *score = exp(*score - largest);
        total += *score;
    }
    output.fill(0.0);
    for (weight, value) in scores.iter().zip(v.chunks_exact(width)) {
        for (output, value) in output.iter_mut().zip(&value[columns.clone()]) {
            *output = weight.mul_add(*value, *output);
        }
    }
    for output in output {
        *output /= total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::image::test_tensors::{tensor, values};
    use crate::kernels::isa::Isa;
    use crate::kernels::test_numbers::{bits, largest};

    #[test]
    fn attention_equals_stock_on_every_instruction_set_and_alone() {
        for (heads, head_dim, queries, keys) in [
            (1, 1, 1, 1),
            (2, 40, 33, 77),
            (3, 7, 5, 5),
            (1, 64, 70, 131),
        ] {
            let width = heads * head_dim;
            let (q, k, v) = (
                (tensor(&[3, queries, width], 1) * 3.0).unwrap(),
                tensor(&[3, keys, width], 2),
                tensor(&[3, keys, width], 3),
            );
            let scale = (head_dim as f32).powf(-0.5);
            let lengths = [keys, 1, keys.div_ceil(2)];
            for mask in [None, Some(Mask::Causal), Some(Mask::KeyLengths(&lengths))] {
                let expected = values(&stock::attention(&q, &k, &v, heads, scale, mask).unwrap());
                let all = || values(&attention(&q, &k, &v, heads, scale, mask).unwrap());
                let output = all();
                let difference: Vec<f32> =
                    output.iter().zip(&expected).map(|(a, b)| a - b).collect();
                assert!(largest(&difference) < 3e-6, "{}", largest(&difference));
                for forced in Isa::for_each(|| bits(&all())) {
                    assert_eq!(forced, bits(&output));
                }
                for row in 0..3 {
                    let mask = match mask {
                        Some(Mask::KeyLengths(lengths)) => {
                            Some(Mask::KeyLengths(&lengths[row..row + 1]))
                        }
                        other => other,
                    };
                    let [q, k, v] = [&q, &k, &v].map(|x| x.narrow(0, row, 1).unwrap());
                    let alone = values(&attention(&q, &k, &v, heads, scale, mask).unwrap());
                    assert_eq!(alone, output[row * alone.len()..(row + 1) * alone.len()]);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (q, k) = (tensor(&[2, 3, 8], 1), tensor(&[2, 5, 8], 2));
        assert!(attention(&q, &k, &k, 3, 1.0, None).is_err());
        assert!(attention(&q, &k, &q, 2, 1.0, None).is_err());
        assert!(attention(&k, &q, &q, 2, 1.0, Some(Mask::Causal)).is_err());
        assert!(attention(&q, &k, &k, 2, 1.0, Some(Mask::KeyLengths(&[5, 0]))).is_err());
        assert!(attention(&q, &k, &k, 2, 1.0, Some(Mask::KeyLengths(&[5]))).is_err());
    }
}
