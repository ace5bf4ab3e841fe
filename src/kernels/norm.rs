//! Root-mean-square normalisation.

use candle_core::{Device, Result, Tensor, bail};

use super::tensor_data::{is_on_cpu, with_slice};
use super::{reference, threads};

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
    if !is_on_cpu(x) {
        return reference::rms_norm(x, weight, eps);
    }
    let mut output = vec![0f32; rows * width];
    with_slice::<f32, _>(x, |x| {
        with_slice::<f32, _>(weight, |weight| {
            threads::for_each_chunk(&mut output, width * ROWS_PER_TASK, |task, output| {
                let start = task * width * ROWS_PER_TASK;
                let x = &x[start..start + output.len()];
                for (x, output) in x.chunks_exact(width).zip(output.chunks_exact_mut(width)) {
                    norm_row(x, weight, eps, output);
                }
            });
            Ok(())
        })
    })?;
    Tensor::from_vec(output, (rows, width), &Device::Cpu)
}

/// A row is too little work to hand to another thread.
const ROWS_PER_TASK: usize = 64;

fn norm_row(x: &[f32], weight: &[f32], eps: f32, output: &mut [f32]) {
    let scale = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in output.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// Sixteen running sums, so that the compiler may use vectors; the order depends on the width alone.
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let chunks = x.chunks_exact(16);
    let tail: f32 = chunks.remainder().iter().map(|x| x * x).sum();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    lanes.iter().sum::<f32>() + tail
}
