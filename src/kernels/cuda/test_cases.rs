//! Numbers and comparisons for the kernels' tests.

use candle_core::{DType, Device, Tensor};

use crate::kernels::test_numbers::{largest, numbers};

/// What activations and K/V may be.
pub(super) const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// A tensor of repeatable numbers, f32.
pub(super) fn tensor(shape: &[usize], seed: u64) -> Tensor {
    let count = shape.iter().product();
    Tensor::from_vec(numbers(count, seed), shape, &Device::Cpu).expect("as many as the shape has")
}

/// The numbers, widened.
pub(super) fn values(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.to_dtype(DType::F32).expect("a float tensor");
    tensor
        .flatten_all()
        .and_then(|tensor| tensor.to_vec1())
        .expect("a tensor of the cpu")
}

/// How far a result of this type may be from the exact one, as a share of the largest.
pub(super) fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        _ => 1e-5,
    }
}

/// # Panics
/// When the numbers differ by more than `tolerance` of the largest.
pub(super) fn assert_near(output: &[f32], expected: &[f32], tolerance: f32, case: &str) {
    assert_eq!(output.len(), expected.len(), "{case}");
    let difference: Vec<f32> = output.iter().zip(expected).map(|(a, b)| a - b).collect();
    let (worst, size) = (largest(&difference), largest(expected).max(1.0));
    assert!(worst <= tolerance * size, "{case}: {worst} of {size}");
}
