//! Rows picked out of a matrix, and counters that go on by one, on the device that holds them.

use candle_core::{DType, Result, Tensor};

use super::{cuda, device_kernels};

/// x: (n, width) f32, index: (m,) u32 on the same device -> (m, width) f32.
///
/// # Errors
/// When the shapes do not fit; on the CPU also when an index is outside. On a card such a row is NaN.
pub fn gather_rows(x: &Tensor, index: &Tensor) -> Result<Tensor> {
    if device_kernels::are_own(x) {
        return cuda::elementwise::gather_rows(x, index, 1.0);
    }
    x.index_select(index, 0)
}

/// numbers: (count,) u32, each of which grows by one, in place: positions of the next step.
///
/// # Errors
/// When the dtype is another, or the numbers are neither on the CPU nor on a CUDA card.
pub fn advance(numbers: &Tensor) -> Result<()> {
    if numbers.device().is_cuda() {
        return cuda::elementwise::advance(numbers);
    }
    let next: Vec<u32> = numbers
        .to_vec1::<u32>()?
        .iter()
        .map(|number| number.wrapping_add(1))
        .collect();
    numbers.slice_set(&Tensor::new(next, numbers.device())?, 0, 0)
}

/// As [`gather_rows`] of a table of any float dtype, widened to f32 and scaled.
///
/// # Errors
/// As [`gather_rows`].
pub(super) fn gather_table(table: &Tensor, index: &Tensor, scale: f32) -> Result<Tensor> {
    if device_kernels::are_own(table) {
        return cuda::elementwise::gather_rows(table, index, scale);
    }
    let rows = table.index_select(index, 0)?.to_dtype(DType::F32)?;
    if scale == 1.0 {
        return Ok(rows);
    }
    rows * f64::from(scale)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_and_counters_on_the_cpu() {
        let x = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let index = Tensor::new(&[1u32, 1, 0], &Device::Cpu).unwrap();
        let rows = gather_rows(&x, &index).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows, [[3.0, 4.0], [3.0, 4.0], [1.0, 2.0]]);
        advance(&index).unwrap();
        assert_eq!(index.to_vec1::<u32>().unwrap(), [2, 2, 1]);
    }
}
