//! Rotary position embedding, with a position per row.

use candle_core::{Device, Result, Tensor, bail};

use super::isa::per_isa;
use super::tensor_data::{is_on_cpu, with_slice};
use super::{cuda, device_kernels, reference, threads};

/// x: (T, heads, d) f32; cos, sin: (max_positions, r / 2) f32; positions: T of them -> (T, heads, d) f32.
///
/// Rotates the first `r` columns of each head, pairing column `i` with `i + r / 2` (the "neox" order); the others
/// pass through.
///
/// # Errors
/// When the shapes do not fit or a position is outside the tables.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, positions: &[u32]) -> Result<Tensor> {
    let (tokens, heads, width) = x.dims3()?;
    let (max_positions, half) = cos.dims2()?;
    if positions.len() != tokens || sin.dims() != cos.dims() || 2 * half > width {
        bail!(
            "rope: x {:?}, cos {:?}, sin {:?} and {} positions do not fit",
            x.dims(),
            cos.dims(),
            sin.dims(),
            positions.len()
        );
    }
    if let Some(position) = positions
        .iter()
        .find(|&&position| position as usize >= max_positions)
    {
        bail!("position {position} is outside the rotary tables of {max_positions} positions");
    }
    if device_kernels::are_own(x) {
        let positions = Tensor::new(positions, x.device())?;
        return cuda::rope::rope(x, cos, sin, &positions);
    }
    if !is_on_cpu(x) {
        return reference::rope(x, cos, sin, positions);
    }
    let mut output = vec![0f32; tokens * heads * width];
    with_slice::<f32, _>(x, |x| {
        with_slice::<f32, _>(cos, |cos| {
            with_slice::<f32, _>(sin, |sin| {
                let token = (heads * width).max(1);
                threads::for_each_chunk(&mut output, token * TOKENS_PER_TASK, |task, output| {
                    let first = task * TOKENS_PER_TASK;
                    let x = &x[first * token..first * token + output.len()];
                    for (index, (x, output)) in x
                        .chunks_exact(token)
                        .zip(output.chunks_exact_mut(token))
                        .enumerate()
                    {
                        let table = positions[first + index] as usize * half;
                        rotate_heads(
                            x,
                            &cos[table..table + half],
                            &sin[table..table + half],
                            width,
                            output,
                        );
                    }
                });
                Ok(())
            })
        })
    })?;
    Tensor::from_vec(output, (tokens, heads, width), &Device::Cpu)
}

/// A token is too little work to hand to another thread.
const TOKENS_PER_TASK: usize = 32;

per_isa! {
    /// All heads of one token.
    fn rotate_heads(x: &[f32], cos: &[f32], sin: &[f32], width: usize, output: &mut [f32]) = rotate_heads_body;
}

#[inline(always)]
fn rotate_heads_body(x: &[f32], cos: &[f32], sin: &[f32], width: usize, output: &mut [f32]) {
    let half = cos.len();
    for (x, output) in x.chunks_exact(width).zip(output.chunks_exact_mut(width)) {
        let (first, second) = (&x[..half], &x[half..2 * half]);
        let (rotated, passed) = output.split_at_mut(2 * half);
        let (out_first, out_second) = rotated.split_at_mut(half);
        for i in 0..half {
            out_first[i] = first[i] * cos[i] - second[i] * sin[i];
            out_second[i] = second[i] * cos[i] + first[i] * sin[i];
        }
        passed.copy_from_slice(&x[2 * half..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Isa;
    use crate::kernels::test_numbers::{bits, largest, numbers};

    fn tables(half: usize) -> (Tensor, Tensor) {
        let angles: Vec<f32> = (0..100)
            .flat_map(|position| (0..half).map(move |i| position as f32 / (i + 1) as f32))
            .collect();
        let angles = Tensor::from_vec(angles, (100, half), &Device::Cpu).unwrap();
        (angles.cos().unwrap(), angles.sin().unwrap())
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn rope_equals_stock_operations_whole_and_partial() {
        for (width, half) in [(64, 32), (80, 16), (6, 3), (64, 20)] {
            let positions: Vec<u32> = (0..70).map(|token| token * 37 % 100).collect();
            let x =
                Tensor::from_vec(numbers(70 * 3 * width, 1), (70, 3, width), &Device::Cpu).unwrap();
            let (cos, sin) = tables(half);
            let output = values(&rope(&x, &cos, &sin, &positions).unwrap());
            let stock = values(&reference::rope(&x, &cos, &sin, &positions).unwrap());
            let difference: Vec<f32> = output.iter().zip(&stock).map(|(a, b)| a - b).collect();
            assert!(largest(&difference) < 1e-6, "width {width}, half {half}");
            let alone = rope(&x.narrow(0, 41, 1).unwrap(), &cos, &sin, &positions[41..42]).unwrap();
            assert_eq!(values(&alone), output[41 * 3 * width..42 * 3 * width]);
        }
    }

    #[test]
    fn instruction_sets_agree_bit_for_bit() {
        for (width, half) in [(64, 32), (80, 16), (6, 3), (33, 15), (128, 64)] {
            let positions: Vec<u32> = (0..70).map(|token| token * 37 % 100).collect();
            let x = numbers(70 * 3 * width, 2);
            let x = Tensor::from_vec(x, (70, 3, width), &Device::Cpu).unwrap();
            let (cos, sin) = tables(half);
            let rotate = || bits(&values(&rope(&x, &cos, &sin, &positions).unwrap()));
            for output in Isa::for_each(rotate) {
                assert_eq!(output, rotate(), "width {width}, half {half}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (cos, sin) = tables(4);
        let x = Tensor::zeros((1, 2, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(rope(&x, &cos, &sin, &[100]).is_err(), "past the tables");
        assert!(
            rope(&x, &cos, &sin, &[0, 1]).is_err(),
            "more positions than tokens"
        );
        let narrow = Tensor::zeros((1, 2, 6), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(
            rope(&narrow, &cos, &sin, &[0]).is_err(),
            "wider tables than heads"
        );
    }
}
