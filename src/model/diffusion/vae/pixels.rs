//! Pictures between bytes and the numbers of a VAE.

use candle_core::{DType, Device, Tensor, bail};

/// pixels: (h, w, 3) f32, -1 to 1 -> h * w * 3 bytes. Numbers beyond are brought back, as diffusers does.
///
/// # Errors
/// Another shape, or a number that is not finite: weights in f16 may leave its range, and a black picture would
/// hide it.
pub fn to_bytes(pixels: &Tensor) -> candle_core::Result<Vec<u8>> {
    let (height, width, channels) = pixels.dims3()?;
    if channels != 3 {
        bail!("a picture of {height} x {width} has 3 channels, not {channels}");
    }
    let values: Vec<f32> = pixels.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    if values.iter().any(|value| !value.is_finite()) {
        bail!("the decoded picture holds numbers that are not finite; decode in f32");
    }
    let byte = |value: f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    Ok(values.into_iter().map(byte).collect())
}

/// bytes: h * w * 3 of a picture -> (1, h, w, 3) f32, -1 to 1.
///
/// # Errors
/// There are more bytes or fewer.
pub fn from_bytes(
    bytes: &[u8],
    height: usize,
    width: usize,
    device: &Device,
) -> candle_core::Result<Tensor> {
    if Some(bytes.len())
        != height
            .checked_mul(width)
            .and_then(|area| area.checked_mul(3))
    {
        bail!("{} bytes are no picture of {height} x {width}", bytes.len());
    }
    let values: Vec<f32> = bytes
        .iter()
        .map(|byte| f32::from(*byte) / 255.0 * 2.0 - 1.0)
        .collect();
    Tensor::from_vec(values, (1, height, width, 3), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_and_numbers_beyond_are_brought_back() {
        let bytes: Vec<u8> = (0..=254).collect();
        let pixels = from_bytes(&bytes, 17, 5, &Device::Cpu).unwrap();
        assert_eq!(to_bytes(&pixels.squeeze(0).unwrap()).unwrap(), bytes);
        let beyond = Tensor::new(&[[[-7f32, 0.0, 1.001]]], &Device::Cpu).unwrap();
        assert_eq!(to_bytes(&beyond).unwrap(), [0, 128, 255]);
        assert!(from_bytes(&bytes, 17, 4, &Device::Cpu).is_err());
        assert!(from_bytes(&bytes, usize::MAX, 5, &Device::Cpu).is_err());
    }

    #[test]
    fn fault_16_a_picture_that_is_not_finite_is_an_error() {
        for value in [f32::NAN, f32::INFINITY] {
            let broken = Tensor::new(&[[[0.0, value, 0.0]]], &Device::Cpu).unwrap();
            assert!(to_bytes(&broken).is_err());
        }
    }
}
