//! Gated activations of feed-forward layers.

use candle_core::{Device, Result, Tensor, bail};

use super::cuda::elementwise::{self, Activation};
use super::isa::per_isa;
use super::math::sigmoid;
use super::tensor_data::{is_on_cpu, with_slice};
use super::{device_kernels, reference, threads};

/// gate, up: f32 of one shape -> `silu(gate) * up`; on other devices also f16 and bf16, -> the same.
///
/// # Errors
/// When the shapes differ.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if device_kernels::are_own(gate) {
        return elementwise::gated(Activation::Silu, gate, up);
    }
    if !is_on_cpu(gate) {
        return reference::silu_mul(gate, up);
    }
    gated(gate, up, silu_mul_slices)
}

/// gate, up: f32 of one shape -> `gelu(gate) * up`, with the tanh form of GELU; on other devices also f16 and bf16,
/// -> the same.
///
/// # Errors
/// When the shapes differ.
pub fn gelu_tanh_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if device_kernels::are_own(gate) {
        return elementwise::gated(Activation::GeluTanh, gate, up);
    }
    if !is_on_cpu(gate) {
        return reference::gelu_tanh_mul(gate, up);
    }
    gated(gate, up, gelu_tanh_mul_slices)
}

per_isa! {
    fn silu_mul_slices(gate: &[f32], up: &[f32], output: &mut [f32]) = silu_mul_body;
}

#[inline(always)]
fn silu_mul_body(gate: &[f32], up: &[f32], output: &mut [f32]) {
    for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
        *output = gate * sigmoid(*gate) * up;
    }
}

per_isa! {
    fn gelu_tanh_mul_slices(gate: &[f32], up: &[f32], output: &mut [f32]) = gelu_tanh_mul_body;
}

#[inline(always)]
fn gelu_tanh_mul_body(gate: &[f32], up: &[f32], output: &mut [f32]) {
    /// Twice sqrt(2 / π): (1 + tanh u) / 2 is sigmoid(2 u).
    const FACTOR: f32 = 1.595_769;
    for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
        let cubic = 0.044715 * gate * gate * gate;
        *output = gate * sigmoid(FACTOR * (gate + cubic)) * up;
    }
}

/// Elements per task: enough that handing it over costs little.
const TASK_ELEMENTS: usize = 16 * 1024;

fn gated(gate: &Tensor, up: &Tensor, activate: fn(&[f32], &[f32], &mut [f32])) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!(
            "the gate has shape {:?}, up has {:?}",
            gate.dims(),
            up.dims()
        );
    }
    let mut output = vec![0f32; gate.elem_count()];
    with_slice::<f32, _>(gate, |gate| {
        with_slice::<f32, _>(up, |up| {
            threads::for_each_chunk(&mut output, TASK_ELEMENTS, |task, output| {
                let range = task * TASK_ELEMENTS..task * TASK_ELEMENTS + output.len();
                activate(&gate[range.clone()], &up[range], output);
            });
            Ok(())
        })
    })?;
    Tensor::from_vec(output, gate.shape(), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Isa;
    use crate::kernels::test_numbers::{bits, largest, numbers};

    fn tensor(seed: u64) -> Tensor {
        let values: Vec<f32> = numbers(3 * 7001, seed).iter().map(|x| 8.0 * x).collect();
        Tensor::from_vec(values, (3, 7001), &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn instruction_sets_agree_bit_for_bit() {
        let mut gate = numbers(3 * 7001, 3);
        gate.iter_mut().for_each(|gate| *gate *= 8.0);
        gate[..6].copy_from_slice(&[0.0, -0.0, 1e4, -1e4, 1e-40, f32::MIN_POSITIVE]);
        let gate = Tensor::from_vec(gate, (3, 7001), &Device::Cpu).unwrap();
        let up = tensor(4);
        for activate in [silu_mul, gelu_tanh_mul] {
            let activate = || bits(&values(&activate(&gate, &up).unwrap()));
            for output in Isa::for_each(activate) {
                assert_eq!(output, activate());
            }
        }
    }

    #[test]
    fn activations_equal_stock_operations_and_do_not_depend_on_place() {
        type Gated = fn(&Tensor, &Tensor) -> Result<Tensor>;
        let pairs: [(Gated, Gated); 2] = [
            (silu_mul, reference::silu_mul),
            (gelu_tanh_mul, reference::gelu_tanh_mul),
        ];
        let (gate, up) = (tensor(1), tensor(2));
        for (ours, stock) in pairs {
            let output = values(&ours(&gate, &up).unwrap());
            let expected = values(&stock(&gate, &up).unwrap());
            let sizes = values(&gate)
                .into_iter()
                .zip(values(&up))
                .map(|(gate, up)| (gate * up).abs().max(1.0));
            let difference: Vec<f32> = output
                .iter()
                .zip(&expected)
                .zip(sizes)
                .map(|((a, b), size)| (a - b) / size)
                .collect();
            assert!(largest(&difference) < 2e-6);
            let row = ours(&gate.narrow(0, 1, 1).unwrap(), &up.narrow(0, 1, 1).unwrap()).unwrap();
            assert_eq!(values(&row), output[7001..14002]);
        }
        assert!(silu_mul(&gate, &up.t().unwrap()).is_err());
    }
}
