//! Moving pixels and channels without arithmetic.

use candle_core::{D, Device, Result, Tensor, bail};

use super::stock::{channels_first, channels_last};
use crate::kernels::pages::zeroed;
use crate::kernels::tensor_data::{is_on_cpu, with_slice};
use crate::kernels::threads;

/// x: (rows, height, width, channels) -> twice as high and wide, each pixel four times.
///
/// # Errors
/// When the rank is not 4.
pub fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    let (_, height, width, _) = x.dims4()?;
    upsample_nearest(x, 2 * height, 2 * width)
}

/// x: (rows, height, width, channels) -> (rows, `height`, `width`, channels), of the nearest pixel at or before the
/// scaled position.
///
/// # Errors
/// When the rank is not 4 or a dimension is zero.
pub fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (rows, old_height, old_width, channels) = x.dims4()?;
    if x.elem_count() == 0 || height == 0 || width == 0 {
        bail!("cannot scale {:?} to {height} x {width} pixels", x.dims());
    }
    if !is_on_cpu(x) {
        return channels_last(&channels_first(x)?.upsample_nearest2d(height, width)?);
    }
    let mut output = zeroed(rows * height * width * channels);
    with_slice::<f32, _>(x, |x| {
        threads::for_each_chunk(&mut output, width * channels, |line, output| {
            let (row, y) = (line / height, line % height);
            let from = (row * old_height + y * old_height / height) * old_width;
            for (column, output) in output.chunks_exact_mut(channels).enumerate() {
                let from = (from + column * old_width / width) * channels;
                output.copy_from_slice(&x[from..from + channels]);
            }
        });
        Ok(())
    })?;
    Tensor::from_vec(output, (rows, height, width, channels), &Device::Cpu)
}

/// a: (rows, height, width, m), b: (rows, height, width, n) -> (rows, height, width, m + n).
///
/// # Errors
/// When the pixels differ.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (rows, height, width, first) = a.dims4()?;
    let second = b.dim(D::Minus1)?;
    if b.dims() != [rows, height, width, second] {
        bail!(
            "cannot put channels of shape {:?} behind {:?}",
            b.dims(),
            a.dims()
        );
    }
    if !is_on_cpu(a) {
        let both = [channels_first(a)?, channels_first(b)?];
        return channels_last(&Tensor::cat(&both, 1)?);
    }
    let channels = first + second;
    let mut output = zeroed(rows * height * width * channels);
    if output.is_empty() {
        bail!("cannot put no channels behind each other");
    }
    with_slice::<f32, _>(a, |a| {
        with_slice::<f32, _>(b, |b| {
            threads::for_each_chunk(&mut output, width * channels, |line, output| {
                for (column, output) in output.chunks_exact_mut(channels).enumerate() {
                    let pixel = line * width + column;
                    output[..first].copy_from_slice(&a[pixel * first..(pixel + 1) * first]);
                    output[first..].copy_from_slice(&b[pixel * second..(pixel + 1) * second]);
                }
            });
            Ok(())
        })
    })?;
    Tensor::from_vec(output, (rows, height, width, channels), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::image::test_tensors::{tensor, values};

    #[test]
    fn scaling_equals_stock() {
        let x = tensor(&[2, 3, 5, 7], 1);
        for (height, width) in [(6, 10), (3, 5), (7, 13), (8, 9)] {
            let ours = upsample_nearest(&x, height, width).unwrap();
            let stock = channels_first(&x)
                .unwrap()
                .upsample_nearest2d(height, width)
                .unwrap();
            assert_eq!(values(&ours), values(&channels_last(&stock).unwrap()));
        }
        assert_eq!(upsample_nearest_2x(&x).unwrap().dims(), [2, 6, 10, 7]);
        assert!(upsample_nearest(&x, 0, 3).is_err());
    }

    #[test]
    fn channels_stand_behind_each_other() {
        let (a, b) = (tensor(&[2, 3, 5, 7], 1), tensor(&[2, 3, 5, 2], 2));
        let stock = Tensor::cat(&[&a, &b], 3).unwrap();
        assert_eq!(values(&concat_channels(&a, &b).unwrap()), values(&stock));
        assert!(concat_channels(&a, &tensor(&[2, 5, 3, 2], 2)).is_err());
    }
}
