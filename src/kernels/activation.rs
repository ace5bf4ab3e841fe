//! Gated activations of feed-forward layers.

use candle_core::{Device, Result, Tensor, bail};

use super::tensor_data::{is_on_cpu, with_slice};
use super::{reference, threads};

/// gate, up: f32 of one shape -> `silu(gate) * up`.
///
/// # Errors
/// When the shapes differ.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if !is_on_cpu(gate) {
        return reference::silu_mul(gate, up);
    }
    gated(gate, up, |gate| gate / (1.0 + (-gate).exp()))
}

/// gate, up: f32 of one shape -> `gelu(gate) * up`, with the tanh form of GELU.
///
/// # Errors
/// When the shapes differ.
pub fn gelu_tanh_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if !is_on_cpu(gate) {
        return reference::gelu_tanh_mul(gate, up);
    }
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    gated(gate, up, |x| {
        0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)).tanh())
    })
}

/// Elements per task: enough that handing it over costs little.
const TASK_ELEMENTS: usize = 16 * 1024;

fn gated(gate: &Tensor, up: &Tensor, activate: impl Fn(f32) -> f32 + Sync) -> Result<Tensor> {
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
                let start = task * TASK_ELEMENTS;
                let inputs = gate[start..].iter().zip(&up[start..]);
                for (out, (gate, up)) in output.iter_mut().zip(inputs) {
                    *out = activate(*gate) * up;
                }
            });
            Ok(())
        })
    })?;
    Tensor::from_vec(output, gate.shape(), &Device::Cpu)
}
