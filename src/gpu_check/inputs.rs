//! Numbers that are the same on every place, in the format that is checked.

use candle_core::{DType, Device, Shape, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::check::Place;
use crate::kernels::image::stock::{channels_first, channels_last};

/// `count` numbers from -1 to 1.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| random.next_u32() as f32 / (u32::MAX / 2) as f32 - 1.0)
        .collect()
}

/// A tensor of such numbers in f32, each of which `dtype` can hold.
///
/// # Errors
/// The device is out of memory.
pub(super) fn tensor(
    place: &Place,
    shape: impl Into<Shape>,
    seed: u64,
    dtype: DType,
) -> candle_core::Result<Tensor> {
    rounded(shape, seed, dtype)?.to_device(&place.device)
}

/// A weight in `dtype` itself.
///
/// # Errors
/// The device is out of memory.
pub(super) fn weight(
    place: &Place,
    shape: impl Into<Shape>,
    seed: u64,
    dtype: DType,
) -> candle_core::Result<Tensor> {
    let weight = rounded(shape, seed, dtype)?.to_dtype(dtype)?;
    weight.to_device(&place.device)
}

/// What picture kernels take, of tokens or vectors: in `dtype` on a card, in f32 on the processor.
///
/// # Errors
/// The device is out of memory.
pub(super) fn activation(
    place: &Place,
    shape: impl Into<Shape>,
    seed: u64,
    dtype: DType,
) -> candle_core::Result<Tensor> {
    match place.is_cpu() {
        true => tensor(place, shape, seed, dtype),
        false => weight(place, shape, seed, dtype),
    }
}

/// A picture's activation of shape (rows, height, width, channels), laid out as the place wants it.
///
/// # Errors
/// The device is out of memory.
pub(super) fn picture(
    place: &Place,
    shape: (usize, usize, usize, usize),
    seed: u64,
    dtype: DType,
) -> candle_core::Result<Tensor> {
    let picture = activation(place, shape, seed, dtype)?;
    match place.is_cpu() {
        true => Ok(picture),
        false => channels_last(&channels_first(&picture)?),
    }
}

/// What came out, on the host in f32 and in the logical order.
///
/// # Errors
/// The device failed.
pub(super) fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor
        .to_dtype(DType::F32)?
        .contiguous()?
        .flatten_all()?
        .to_vec1()
}

fn rounded(shape: impl Into<Shape>, seed: u64, dtype: DType) -> candle_core::Result<Tensor> {
    let shape = shape.into();
    let numbers = numbers(shape.elem_count(), seed);
    Tensor::from_vec(numbers, shape, &Device::Cpu)?
        .to_dtype(dtype)?
        .to_dtype(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lie_on_both_sides_and_can_be_held() {
        let numbers = numbers(1000, 1);
        assert!(numbers.iter().all(|number| (-1.0..=1.0).contains(number)));
        assert!(numbers.iter().any(|number| *number < -0.9));
        assert!(numbers.iter().any(|number| *number > 0.9));
        let place = Place::cpu();
        let wide = values(&tensor(&place, 100, 1, DType::BF16).unwrap()).unwrap();
        let narrow = values(&weight(&place, 100, 1, DType::BF16).unwrap()).unwrap();
        assert_eq!(wide, narrow);
        assert_ne!(
            wide,
            values(&tensor(&place, 100, 2, DType::BF16).unwrap()).unwrap()
        );
    }
}
