//! Root-mean-square normalisation.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::isa::per_isa;
use super::math::sum_lanes;
use super::tensor_data::{is_on_cpu, with_slice};
use super::{cuda, device_kernels, reference, threads};

/// x: (rows, d) f32, weight: (d,) f32 -> (rows, d) f32, `x / sqrt(mean(x²) + eps) * weight` per row.
///
/// For a norm per head, pass (T * heads, head_dim).
///
/// # Errors
/// When the shapes or dtypes do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if weight.dims() != [width] {
        bail!(
            "the norm weight has shape {:?}, the rows have {width} columns",
            weight.dims()
        );
    }
    if device_kernels::are_own(x) {
        return cuda::norm::rms_norm(x, weight, eps, DType::F32);
    }
    if !is_on_cpu(x) {
        return reference::rms_norm(x, weight, eps);
    }
    let mut output = vec![0f32; rows * width];
    with_slice::<f32, _>(x, |x| {
        with_slice::<f32, _>(weight, |weight| {
            threads::for_each_chunk(
                &mut output,
                (width * ROWS_PER_TASK).max(1),
                |task, output| {
                    let start = task * width * ROWS_PER_TASK;
                    norm_rows(&x[start..start + output.len()], weight, eps, output);
                },
            );
            Ok(())
        })
    })?;
    Tensor::from_vec(output, (rows, width), &Device::Cpu)
}

/// As [`rms_norm`], rounded to `dtype`: the numbers that the next product multiplies.
///
/// # Errors
/// As [`rms_norm`].
pub fn rms_norm_to(x: &Tensor, weight: &Tensor, eps: f32, dtype: DType) -> Result<Tensor> {
    if device_kernels::are_own(x) {
        return cuda::norm::rms_norm(x, weight, eps, dtype);
    }
    rms_norm(x, weight, eps)?.to_dtype(dtype)
}

/// hidden: (rows, d) f32, delta: (rows, d) of any float dtype -> `hidden + delta` (rows, d) f32, and its norm (rows, d)
/// of `dtype`. On a card one launch.
///
/// # Errors
/// When the shapes or dtypes do not fit.
pub fn add_rms_norm(
    hidden: &Tensor,
    delta: &Tensor,
    weight: &Tensor,
    eps: f32,
    dtype: DType,
) -> Result<(Tensor, Tensor)> {
    if device_kernels::are_own(hidden) {
        return cuda::norm::add_rms_norm(hidden, delta, weight, eps, dtype);
    }
    let sum = (hidden + delta.to_dtype(DType::F32)?)?;
    let normed = rms_norm_to(&sum, weight, eps, dtype)?;
    Ok((sum, normed))
}

/// hidden: (rows, d) f32, x: (rows, d) of any float dtype -> `hidden + norm(x)` (rows, d) f32. On a card one launch.
///
/// # Errors
/// When the shapes or dtypes do not fit.
pub fn add_normed(hidden: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if device_kernels::are_own(hidden) {
        return cuda::norm::add_normed(hidden, x, weight, eps);
    }
    hidden + rms_norm(&x.to_dtype(DType::F32)?, weight, eps)?
}

/// A row is too little work to hand to another thread.
const ROWS_PER_TASK: usize = 64;

per_isa! {
    /// Rows as wide as `weight`.
    fn norm_rows(x: &[f32], weight: &[f32], eps: f32, output: &mut [f32]) = norm_rows_body;
}

#[inline(always)]
fn norm_rows_body(x: &[f32], weight: &[f32], eps: f32, output: &mut [f32]) {
    let width = weight.len();
    for (x, output) in x.chunks_exact(width).zip(output.chunks_exact_mut(width)) {
        let scale = 1.0 / (sum_of_squares(x) / width as f32 + eps).sqrt();
        for ((out, x), weight) in output.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

/// Sixteen running sums, so that vectors may be used; the order depends on the width alone.
#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] = chunk[lane].mul_add(chunk[lane], lanes[lane]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane = x.mul_add(*x, *lane);
    }
    sum_lanes(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Isa;
    use crate::kernels::test_numbers::{bits, largest, numbers};

    fn tensor(values: Vec<f32>, width: usize) -> Tensor {
        Tensor::from_vec(values.clone(), (values.len() / width, width), &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn norm_equals_stock_operations_and_does_not_depend_on_company() {
        for width in [1, 7, 16, 64, 576, 1000] {
            let x = numbers(130 * width, 11);
            let weight = Tensor::from_vec(numbers(width, 12), width, &Device::Cpu).unwrap();
            let together = values(&rms_norm(&tensor(x.clone(), width), &weight, 1e-5).unwrap());
            let stock =
                values(&reference::rms_norm(&tensor(x.clone(), width), &weight, 1e-5).unwrap());
            let difference: Vec<f32> = together.iter().zip(&stock).map(|(a, b)| a - b).collect();
            assert!(largest(&difference) < 1e-5, "width {width}");
            for (x, expected) in x.chunks(width).zip(together.chunks(width)) {
                let alone = values(&rms_norm(&tensor(x.to_vec(), width), &weight, 1e-5).unwrap());
                assert_eq!(alone, expected, "width {width}");
            }
        }
    }

    #[test]
    fn instruction_sets_agree_bit_for_bit() {
        for width in [1, 7, 16, 17, 64, 576, 1000] {
            let x = tensor(numbers(70 * width, 13), width);
            let weight = Tensor::from_vec(numbers(width, 14), width, &Device::Cpu).unwrap();
            let norm = || bits(&values(&rms_norm(&x, &weight, 1e-5).unwrap()));
            for output in Isa::for_each(norm) {
                assert_eq!(output, norm(), "width {width}");
            }
        }
    }

    #[test]
    fn a_weight_of_another_width_is_refused() {
        let weight = Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(rms_norm(&tensor(vec![1.0; 8], 4), &weight, 1e-5).is_err());
    }
}
