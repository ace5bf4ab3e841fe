//! Normalisation of each token or pixel by itself.

use candle_core::{D, DType, Device, Result, Tensor, bail};

use super::stock;
use crate::kernels::isa::per_isa;
use crate::kernels::math::sum_lanes;
use crate::kernels::pages::zeroed;
use crate::kernels::tensor_data::{is_on_cpu, with_slice};
use crate::kernels::threads;

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// (channels,) f32
    weight: Tensor,
    /// (channels,) f32
    bias: Option<Tensor>,
    eps: f64,
}

impl LayerNorm {
    /// weight, bias: (channels,) of any float dtype.
    ///
    /// # Errors
    /// When the bias does not fit the weight.
    pub fn new(weight: Tensor, bias: Option<Tensor>, eps: f64) -> Result<Self> {
        let channels = weight.dims1()?;
        if let Some(bias) = &bias
            && bias.dims() != [channels]
        {
            bail!(
                "the norm bias has shape {:?}, the weight {channels} channels",
                bias.dims()
            );
        }
        Ok(Self {
            weight: weight.to_dtype(DType::F32)?.contiguous()?,
            bias: bias.map(|bias| bias.to_dtype(DType::F32)).transpose()?,
            eps,
        })
    }

    /// x: (.., channels) -> the same shape and dtype.
    ///
    /// # Errors
    /// When `x` has other channels, or on the CPU is not f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let channels = self.weight.elem_count();
        if x.dim(D::Minus1)? != channels {
            bail!(
                "the layer norm takes {channels} channels, the input has shape {:?}",
                x.dims()
            );
        }
        if !is_on_cpu(x) {
            return stock::layer_norm(x, &self.weight, self.bias.as_ref(), self.eps);
        }
        let mut output = zeroed(x.elem_count());
        let chunk = (TASK_ELEMENTS / channels.max(1)).max(1) * channels.max(1);
        let bias = match &self.bias {
            Some(bias) => bias.to_vec1::<f32>()?,
            None => vec![0f32; channels],
        };
        with_slice::<f32, _>(x, |x| {
            with_slice::<f32, _>(&self.weight, |weight| {
                threads::for_each_chunk(&mut output, chunk, |task, output| {
                    let x = &x[task * chunk..][..output.len()];
                    norm_rows(x, weight, &bias, self.eps as f32, output);
                });
                Ok(())
            })
        })?;
        Tensor::from_vec(output, x.shape(), &Device::Cpu)
    }
}

/// Elements per task: enough that handing it over costs little.
const TASK_ELEMENTS: usize = 16 * 1024;

per_isa! {
    /// Rows as wide as `weight`.
    fn norm_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, output: &mut [f32]) = norm_rows_body;
}

#[inline(always)]
fn norm_rows_body(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, output: &mut [f32]) {
    let width = weight.len();
    for (x, output) in x.chunks_exact(width).zip(output.chunks_exact_mut(width)) {
        let mean = sum(x) / width as f32;
        let scale = 1.0 / (sum_of_squares(x, mean) / width as f32 + eps).sqrt();
        for (((out, x), weight), bias) in output.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = ((x - mean) * scale).mul_add(*weight, *bias);
        }
    }
}

/// Sixteen running sums; the order depends on the width alone.
#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane += x;
    }
    sum_lanes(lanes)
}

/// As [`sum`], of squared distances from `mean`.
#[inline(always)]
fn sum_of_squares(x: &[f32], mean: f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            let distance = chunk[lane] - mean;
            lanes[lane] = distance.mul_add(distance, lanes[lane]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        let distance = x - mean;
        *lane = distance.mul_add(distance, *lane);
    }
    sum_lanes(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::image::test_tensors::{tensor, values};
    use crate::kernels::isa::Isa;
    use crate::kernels::test_numbers::{bits, largest};

    #[test]
    fn norm_equals_stock_on_every_instruction_set_and_alone() {
        for width in [1, 7, 16, 77, 768] {
            let (weight, bias) = (tensor(&[width], 2), tensor(&[width], 3));
            // A mean that is large beside the spread.
            let x = (tensor(&[3, 41, width], 1) + 10.0).unwrap();
            let expected = values(&stock::layer_norm(&x, &weight, Some(&bias), 1e-5).unwrap());
            let norm = LayerNorm::new(weight, Some(bias), 1e-5).unwrap();
            let output = values(&norm.forward(&x).unwrap());
            let difference: Vec<f32> = output.iter().zip(&expected).map(|(a, b)| a - b).collect();
            assert!(
                largest(&difference) < 1e-4,
                "{width}: {}",
                largest(&difference)
            );
            for forced in Isa::for_each(|| bits(&values(&norm.forward(&x).unwrap()))) {
                assert_eq!(forced, bits(&output));
            }
            let alone = values(&norm.forward(&x.narrow(0, 1, 1).unwrap()).unwrap());
            assert_eq!(alone, output[alone.len()..2 * alone.len()]);
            assert!(norm.forward(&tensor(&[2, width + 1], 1)).is_err());
        }
    }
}
