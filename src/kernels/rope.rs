//! Rotary position embedding, with a position per row.

use candle_core::{Device, Result, Tensor, bail};

use super::reference;
use super::tensor_data::{is_on_cpu, with_slice};

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
    if !is_on_cpu(x) {
        return reference::rope(x, cos, sin, positions);
    }
    let mut output = vec![0f32; tokens * heads * width];
    with_slice::<f32, _>(x, |x| {
        with_slice::<f32, _>(cos, |cos| {
            with_slice::<f32, _>(sin, |sin| {
                let rows = x.chunks_exact(width).zip(output.chunks_exact_mut(width));
                for (index, (x, output)) in rows.enumerate() {
                    let table = positions[index / heads] as usize * half;
                    rotate(
                        x,
                        &cos[table..table + half],
                        &sin[table..table + half],
                        output,
                    );
                }
                Ok(())
            })
        })
    })?;
    Tensor::from_vec(output, (tokens, heads, width), &Device::Cpu)
}

fn rotate(x: &[f32], cos: &[f32], sin: &[f32], output: &mut [f32]) {
    let half = cos.len();
    let (first, second) = (&x[..half], &x[half..2 * half]);
    let (rotated, passed) = output.split_at_mut(2 * half);
    let (out_first, out_second) = rotated.split_at_mut(half);
    for i in 0..half {
        out_first[i] = first[i] * cos[i] - second[i] * sin[i];
        out_second[i] = second[i] * cos[i] + first[i] * sin[i];
    }
    passed.copy_from_slice(&x[2 * half..]);
}
