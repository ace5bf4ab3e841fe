//! Operations that take each number by itself.

use candle_core::{D, Device, Result, Tensor, bail};

use crate::kernels::isa::per_isa;
use crate::kernels::math::{exp, sigmoid};
use crate::kernels::pages::zeroed;
use crate::kernels::tensor_data::{is_on_cpu, with_slice};
use crate::kernels::threads;

/// Elements per task: enough that handing it over costs little.
const TASK_ELEMENTS: usize = 16 * 1024;

/// a, b: of one shape -> `a + b`.
///
/// # Errors
/// When the shapes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("cannot add shape {:?} to {:?}", b.dims(), a.dims());
    }
    if !is_on_cpu(a) {
        return a + b;
    }
    with_slice::<f32, _>(b, |b| {
        map(a, |start, a, output| {
            add_slices(a, &b[start..start + a.len()], output);
        })
    })
}

/// x: (rows, .., channels), bias: (rows, channels) -> `x` with the row's own bias on each pixel.
///
/// # Errors
/// When the shapes do not fit.
pub fn add_per_row(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (rows, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
    if bias.dims() != [rows, channels] {
        bail!(
            "the bias per row has shape {:?}, the input {:?}",
            bias.dims(),
            x.dims()
        );
    }
    if !is_on_cpu(x) {
        let mut shape = vec![1; x.rank()];
        shape[0] = rows;
        shape[x.rank() - 1] = channels;
        return x.broadcast_add(&bias.reshape(shape)?.to_dtype(x.dtype())?);
    }
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let row_elements = x.elem_count() / rows;
    let chunk = (TASK_ELEMENTS / channels).max(1) * channels;
    let mut output = zeroed(x.elem_count());
    with_slice::<f32, _>(x, |x| {
        with_slice::<f32, _>(bias, |bias| {
            threads::for_each_chunk(&mut output, chunk, |task, output| {
                let start = task * chunk;
                for (pixel, output) in output.chunks_exact_mut(channels).enumerate() {
                    let at = start + pixel * channels;
                    let row = at / row_elements;
                    let bias = &bias[row * channels..(row + 1) * channels];
                    add_slices(&x[at..at + channels], bias, output);
                }
            });
            Ok(())
        })
    })?;
    Tensor::from_vec(output, x.shape(), &Device::Cpu)
}

/// `x * sigmoid(x)`
///
/// # Errors
/// When `x` on the CPU is not f32.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if !is_on_cpu(x) {
        return x.silu();
    }
    map(x, |_, x, output| silu_slices(x, output))
}

/// `x * Φ(x)`, the exact form of GELU.
///
/// # Errors
/// When `x` on the CPU is not f32.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    if !is_on_cpu(x) {
        return x.gelu_erf();
    }
    map(x, |_, x, output| gelu_erf_slices(x, output))
}

/// `x * sigmoid(1.702 x)`, OpenAI CLIP's GELU.
///
/// # Errors
/// When `x` on the CPU is not f32.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    if !is_on_cpu(x) {
        let gate = candle_nn::ops::sigmoid(&(x * 1.702)?)?;
        return x * gate;
    }
    map(x, |_, x, output| quick_gelu_slices(x, output))
}

/// x: (.., 2 c), values before gates -> (.., c), `value * gelu_erf(gate)`.
///
/// # Errors
/// When the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let both = x.dim(D::Minus1)?;
    if both == 0 || both % 2 != 0 {
        bail!("geglu takes values and gates, not {both} columns");
    }
    let width = both / 2;
    if !is_on_cpu(x) {
        let value = x.narrow(D::Minus1, 0, width)?;
        let gate = x.narrow(D::Minus1, width, width)?;
        return value * gate.gelu_erf()?;
    }
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    let mut output = zeroed(x.elem_count() / 2);
    let chunk = (TASK_ELEMENTS / width).max(1) * width;
    with_slice::<f32, _>(x, |x| {
        threads::for_each_chunk(&mut output, chunk, |task, output| {
            let x = &x[2 * task * chunk..][..2 * output.len()];
            geglu_slices(x, width, output);
        });
        Ok(())
    })?;
    Tensor::from_vec(output, shape, &Device::Cpu)
}

/// A CPU tensor of the same shape, filled by `fill(start, input, output)` in chunks.
fn map(x: &Tensor, fill: impl Fn(usize, &[f32], &mut [f32]) + Sync) -> Result<Tensor> {
    let mut output = zeroed(x.elem_count());
    with_slice::<f32, _>(x, |x| {
        threads::for_each_chunk(&mut output, TASK_ELEMENTS, |task, output| {
            let start = task * TASK_ELEMENTS;
            fill(start, &x[start..start + output.len()], output);
        });
        Ok(())
    })?;
    Tensor::from_vec(output, x.shape(), &Device::Cpu)
}

per_isa! {
    fn add_slices(a: &[f32], b: &[f32], output: &mut [f32]) = add_body;
}

#[inline(always)]
fn add_body(a: &[f32], b: &[f32], output: &mut [f32]) {
    for ((output, a), b) in output.iter_mut().zip(a).zip(b) {
        *output = a + b;
    }
}

per_isa! {
    fn silu_slices(x: &[f32], output: &mut [f32]) = silu_body;
}

#[inline(always)]
fn silu_body(x: &[f32], output: &mut [f32]) {
    for (output, x) in output.iter_mut().zip(x) {
        *output = x * sigmoid(*x);
    }
}

per_isa! {
    fn quick_gelu_slices(x: &[f32], output: &mut [f32]) = quick_gelu_body;
}

#[inline(always)]
fn quick_gelu_body(x: &[f32], output: &mut [f32]) {
    for (output, x) in output.iter_mut().zip(x) {
        *output = x * sigmoid(1.702 * x);
    }
}

per_isa! {
    fn gelu_erf_slices(x: &[f32], output: &mut [f32]) = gelu_erf_body;
}

#[inline(always)]
fn gelu_erf_body(x: &[f32], output: &mut [f32]) {
    for (output, x) in output.iter_mut().zip(x) {
        *output = x * normal_cdf(*x);
    }
}

per_isa! {
    /// x: (rows, 2 width) -> (rows, width)
    fn geglu_slices(x: &[f32], width: usize, output: &mut [f32]) = geglu_body;
}

#[inline(always)]
fn geglu_body(x: &[f32], width: usize, output: &mut [f32]) {
    for (x, output) in x
        .chunks_exact(2 * width)
        .zip(output.chunks_exact_mut(width))
    {
        let (values, gates) = x.split_at(width);
        for ((output, value), gate) in output.iter_mut().zip(values).zip(gates) {
            *output = value * (gate * normal_cdf(*gate));
        }
    }
}

/// The chance that a normal number is below x, within 2e-7: Abramowitz and Stegun 7.1.26 for the tail.
#[inline(always)]
pub(super) fn normal_cdf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / 0.327_591_1f32.mul_add(z, 1.0);
    let mut sum = 1.061_405_4f32;
    for coefficient in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        sum = sum.mul_add(t, coefficient);
    }
    let tail = 0.5 * t * sum * exp(-z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::image::test_tensors::{tensor, values};
    use crate::kernels::isa::Isa;
    use crate::kernels::test_numbers::{bits, largest};

    type Operation = fn(&Tensor) -> Result<Tensor>;

    fn stock_quick_gelu(x: &Tensor) -> Result<Tensor> {
        x * candle_nn::ops::sigmoid(&(x * 1.702)?)?
    }

    fn stock_geglu(x: &Tensor) -> Result<Tensor> {
        let width = x.dim(D::Minus1)? / 2;
        x.narrow(D::Minus1, 0, width)? * x.narrow(D::Minus1, width, width)?.gelu_erf()?
    }

    /// Ours, and what stock Candle says for it.
    const OPERATIONS: [(Operation, Operation); 4] = [
        (silu, Tensor::silu),
        (gelu_erf, Tensor::gelu_erf),
        (quick_gelu, stock_quick_gelu),
        (geglu, stock_geglu),
    ];

    #[test]
    fn activations_equal_stock_operations_on_every_instruction_set_and_alone() {
        let x = (tensor(&[3, 37, 254], 1) * 6.0).unwrap();
        for (operation, stock) in OPERATIONS {
            let output = values(&operation(&x).unwrap());
            let expected = values(&stock(&x).unwrap());
            let difference: Vec<f32> = output.iter().zip(&expected).map(|(a, b)| a - b).collect();
            assert!(largest(&difference) < 2e-5, "{}", largest(&difference));
            for forced in Isa::for_each(|| bits(&values(&operation(&x).unwrap()))) {
                assert_eq!(forced, bits(&output));
            }
            let alone = values(&operation(&x.narrow(0, 1, 1).unwrap()).unwrap());
            assert_eq!(alone, output[alone.len()..2 * alone.len()]);
        }
    }

    #[test]
    fn the_normal_distribution_is_within_its_bound() {
        // Φ(1), Φ(2), Φ(3) to ten digits.
        for (x, expected) in [
            (0.0, 0.5f64),
            (1.0, 0.841_344_746_1),
            (2.0, 0.977_249_868_1),
            (3.0, 0.998_650_102),
        ] {
            assert!((f64::from(normal_cdf(x)) - expected).abs() < 2e-7, "{x}");
            assert!((f64::from(normal_cdf(-x)) - (1.0 - expected)).abs() < 2e-7);
        }
        assert!(normal_cdf(f32::NAN).is_nan());
        assert!(normal_cdf(-40.0) < 1e-30 && normal_cdf(40.0) == 1.0);
    }

    #[test]
    fn sums_are_exact() {
        let (x, y, bias) = (
            tensor(&[3, 5, 7, 19], 1),
            tensor(&[3, 5, 7, 19], 2),
            tensor(&[3, 19], 3),
        );
        assert_eq!(values(&add(&x, &y).unwrap()), values(&(&x + &y).unwrap()));
        let expected = x.broadcast_add(&bias.reshape((3, 1, 1, 19)).unwrap());
        assert_eq!(
            values(&add_per_row(&x, &bias).unwrap()),
            values(&expected.unwrap())
        );
        assert!(add(&x, &bias).is_err());
        assert!(add_per_row(&x, &y).is_err());
        assert!(geglu(&x).is_err());
    }
}
