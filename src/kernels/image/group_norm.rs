//! Normalisation over groups of channels and all pixels.

use candle_core::{D, DType, Device, Result, Tensor, bail};

use super::{add_per_row, stock};
use crate::kernels::cuda::group_norm::{self as on_card, GroupNormOptions};
use crate::kernels::isa::per_isa;
use crate::kernels::math::sigmoid;
use crate::kernels::pages::zeroed;
use crate::kernels::tensor_data::{is_on_cpu, with_slice};
use crate::kernels::{device_kernels, threads};

/// `(x - mean) / sqrt(variance + eps) * weight + bias`, with the mean and variance of a group of channels over all
/// pixels of a row.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    /// (channels,) f32
    weight: Tensor,
    /// (channels,) f32
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// weight, bias: (channels,) of any float dtype.
    ///
    /// # Errors
    /// When the bias does not fit, or the groups do not divide the channels.
    pub fn new(weight: Tensor, bias: Tensor, groups: usize, eps: f64) -> Result<Self> {
        let channels = weight.dims1()?;
        if bias.dims() != [channels] {
            bail!(
                "the norm bias has shape {:?}, the weight {channels} channels",
                bias.dims()
            );
        }
        if groups == 0 || channels == 0 || !channels.is_multiple_of(groups) {
            bail!("{channels} channels cannot be cut into {groups} groups");
        }
        Ok(Self {
            weight: weight.to_dtype(DType::F32)?.contiguous()?,
            bias: bias.to_dtype(DType::F32)?.contiguous()?,
            groups,
            eps,
        })
    }

    /// x: (rows, height, width, channels) or (rows, tokens, channels) -> the same shape and dtype.
    ///
    /// # Errors
    /// When `x` has another rank or other channels, or on the CPU is not f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None, false)
    }

    /// As [`Self::forward`], then `y * sigmoid(y)`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None, true)
    }

    /// As [`Self::forward_silu`] of `x` with the row's own bias on each pixel, bias: (rows, channels). On a card one pass
    /// less over the pixels than adding it before.
    ///
    /// # Errors
    /// As [`Self::forward`], or when the bias does not fit.
    pub fn forward_silu_after_add(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        self.apply(x, Some(bias), true)
    }

    /// The norm of `x`, plus `added` per row.
    fn apply(&self, x: &Tensor, added: Option<&Tensor>, silu: bool) -> Result<Tensor> {
        let channels = self.weight.elem_count();
        if !matches!(x.rank(), 3 | 4) || x.dim(D::Minus1)? != channels {
            bail!(
                "the group norm takes {channels} channels of tokens or pixels, the input has shape {:?}",
                x.dims()
            );
        }
        if device_kernels::are_own(x) && x.rank() == 4 {
            return self.on_card(x, added, silu);
        }
        let sum = added.map(|added| add_per_row(x, added)).transpose()?;
        let x = sum.as_ref().unwrap_or(x);
        if !is_on_cpu(x) {
            let y = stock::group_norm(x, &self.weight, &self.bias, self.groups, self.eps)?;
            return if silu { y.silu() } else { Ok(y) };
        }
        let row_elements: usize = x.dims()[1..].iter().product();
        if x.elem_count() == 0 {
            return Ok(x.clone());
        }
        let (weight, bias) = (self.weight.to_vec1::<f32>()?, self.bias.to_vec1::<f32>()?);
        let mut output = zeroed(x.elem_count());
        with_slice::<f32, _>(x, |x| {
            let affine = self.row_affines(x, row_elements, &weight, &bias);
            let chunk = PIXELS_PER_TASK * channels;
            let tasks_per_row = row_elements.div_ceil(chunk);
            let rows: Vec<_> = output.chunks_mut(row_elements).collect();
            let mut parts: Vec<(usize, &mut [f32])> = Vec::new();
            for (row, output) in rows.into_iter().enumerate() {
                for (task, part) in output.chunks_mut(chunk).enumerate() {
                    parts.push((row * tasks_per_row + task, part));
                }
            }
            threads::for_each_chunk(&mut parts, 1, |_, parts| {
                for (task, output) in parts {
                    let (row, task) = (*task / tasks_per_row, *task % tasks_per_row);
                    let x = &x[row * row_elements + task * chunk..][..output.len()];
                    let (scale, shift) =
                        affine[row * 2 * channels..(row + 1) * 2 * channels].split_at(channels);
                    if silu {
                        scale_silu_pixels(x, scale, shift, output);
                    } else {
                        scale_pixels(x, scale, shift, output);
                    }
                }
            });
            Ok(())
        })?;
        Tensor::from_vec(output, x.shape(), &Device::Cpu)
    }

    /// x: (rows, height, width, channels), a view of channels first.
    fn on_card(&self, x: &Tensor, added: Option<&Tensor>, silu: bool) -> Result<Tensor> {
        let added = match added {
            Some(added) => Some(added.to_dtype(x.dtype())?.contiguous()?),
            None => None,
        };
        let options = GroupNormOptions {
            groups: self.groups,
            eps: self.eps as f32,
            silu,
        };
        let first = stock::channels_first(x)?;
        let normed =
            on_card::group_norm(&first, added.as_ref(), &self.weight, &self.bias, options)?;
        stock::channels_last(&normed)
    }

    /// Per row, what each channel is to be multiplied by, then what is to be added: (rows, 2, channels).
    fn row_affines(
        &self,
        x: &[f32],
        row_elements: usize,
        weight: &[f32],
        bias: &[f32],
    ) -> Vec<f32> {
        let channels = weight.len();
        let rows = x.len() / row_elements;
        let pixels = row_elements / channels;
        let tasks_per_row = pixels.div_ceil(PIXELS_PER_TASK);
        // Per task the sums and the sums of squares of each channel, about the channel's first pixel.
        let mut partial = vec![0f32; rows * tasks_per_row * 2 * channels];
        threads::for_each_chunk(&mut partial, 2 * channels, |task, sums| {
            let (row, task) = (task / tasks_per_row, task % tasks_per_row);
            let x = &x[row * row_elements..(row + 1) * row_elements];
            let end = pixels.min((task + 1) * PIXELS_PER_TASK);
            let (sums, squares) = sums.split_at_mut(channels);
            sum_pixels(
                &x[task * PIXELS_PER_TASK * channels..end * channels],
                &x[..channels],
                sums,
                squares,
            );
        });
        let mut affine = vec![0f32; rows * 2 * channels];
        let per_group = channels / self.groups;
        let count = (pixels * per_group) as f64;
        for (row, affine) in affine.chunks_exact_mut(2 * channels).enumerate() {
            let origin = &x[row * row_elements..][..channels];
            let partial =
                &partial[row * tasks_per_row * 2 * channels..][..tasks_per_row * 2 * channels];
            let (scales, shifts) = affine.split_at_mut(channels);
            for group in 0..self.groups {
                let group = group * per_group..(group + 1) * per_group;
                let (mut mean, mut totals) = (0f64, Vec::with_capacity(per_group));
                for channel in group.clone() {
                    let (mut sum, mut square) = (0f64, 0f64);
                    for partial in partial.chunks_exact(2 * channels) {
                        sum += f64::from(partial[channel]);
                        square += f64::from(partial[channels + channel]);
                    }
                    totals.push((sum, square));
                    mean += sum + pixels as f64 * f64::from(origin[channel]);
                }
                mean /= count;
                let mut variance = 0f64;
                for (channel, (sum, square)) in group.clone().zip(totals) {
                    // Σ (d + o - mean)² for d = x - o.
                    let offset = f64::from(origin[channel]) - mean;
                    variance += square + 2.0 * offset * sum + pixels as f64 * offset * offset;
                }
                let scale = 1.0 / (variance.max(0.0) / count + self.eps).sqrt();
                for channel in group {
                    let factor = scale * f64::from(weight[channel]);
                    scales[channel] = factor as f32;
                    shifts[channel] = (f64::from(bias[channel]) - mean * factor) as f32;
                }
            }
        }
        affine
    }
}

/// Pixels whose sums are taken in f32, and that make a task.
const PIXELS_PER_TASK: usize = 64;

per_isa! {
    /// Adds to `sums` and `squares` what each pixel's channels are above `origin`, all as long as a pixel.
    fn sum_pixels(x: &[f32], origin: &[f32], sums: &mut [f32], squares: &mut [f32]) = sum_pixels_body;
}

#[inline(always)]
fn sum_pixels_body(x: &[f32], origin: &[f32], sums: &mut [f32], squares: &mut [f32]) {
    for pixel in x.chunks_exact(origin.len()) {
        for (((x, origin), sum), square) in
            pixel.iter().zip(origin).zip(&mut *sums).zip(&mut *squares)
        {
            let distance = x - origin;
            *sum += distance;
            *square = distance.mul_add(distance, *square);
        }
    }
}

per_isa! {
    fn scale_pixels(x: &[f32], scale: &[f32], shift: &[f32], output: &mut [f32]) = scale_pixels_body;
}

#[inline(always)]
fn scale_pixels_body(x: &[f32], scale: &[f32], shift: &[f32], output: &mut [f32]) {
    let channels = scale.len();
    for (x, output) in x
        .chunks_exact(channels)
        .zip(output.chunks_exact_mut(channels))
    {
        for (((output, x), scale), shift) in output.iter_mut().zip(x).zip(scale).zip(shift) {
            *output = x.mul_add(*scale, *shift);
        }
    }
}

per_isa! {
    fn scale_silu_pixels(x: &[f32], scale: &[f32], shift: &[f32], output: &mut [f32]) = scale_silu_pixels_body;
}

#[inline(always)]
fn scale_silu_pixels_body(x: &[f32], scale: &[f32], shift: &[f32], output: &mut [f32]) {
    let channels = scale.len();
    for (x, output) in x
        .chunks_exact(channels)
        .zip(output.chunks_exact_mut(channels))
    {
        for (((output, x), scale), shift) in output.iter_mut().zip(x).zip(scale).zip(shift) {
            let y = x.mul_add(*scale, *shift);
            *output = y * sigmoid(y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::image::test_tensors::{tensor, values};
    use crate::kernels::isa::Isa;
    use crate::kernels::test_numbers::{bits, largest};

    #[test]
    fn norm_equals_stock_on_every_instruction_set_and_alone() {
        for (channels, groups, pixels) in [
            (1, 1, 3),
            (6, 3, 35),
            (32, 32, 64),
            (40, 4, 130),
            (320, 32, 97),
        ] {
            let (weight, bias) = (tensor(&[channels], 2), tensor(&[channels], 3));
            // A mean that is large beside the spread.
            let x = (tensor(&[3, pixels, channels], 1) + 30.0).unwrap();
            let normal = stock::group_norm(&x, &weight, &bias, groups, 1e-5).unwrap();
            let norm = GroupNorm::new(weight, bias, groups, 1e-5).unwrap();
            for silu in [false, true] {
                let expected = if silu {
                    normal.silu().unwrap()
                } else {
                    normal.clone()
                };
                let forward = |x: &Tensor| values(&norm.apply(x, None, silu).unwrap());
                let output = forward(&x);
                let difference: Vec<f32> = output
                    .iter()
                    .zip(values(&expected))
                    .map(|(a, b)| a - b)
                    .collect();
                assert!(
                    largest(&difference) < 2e-4,
                    "{channels}: {}",
                    largest(&difference)
                );
                for forced in Isa::for_each(|| bits(&forward(&x))) {
                    assert_eq!(forced, bits(&output));
                }
                let alone = forward(&x.narrow(0, 1, 1).unwrap());
                assert_eq!(alone, output[alone.len()..2 * alone.len()]);
                let bias = tensor(&[3, channels], 5);
                let added = norm.apply(&x, Some(&bias), silu).unwrap();
                let before = add_per_row(&x, &bias).unwrap();
                assert_eq!(values(&added), forward(&before));
                let square = x.reshape((3, 1, pixels, channels)).unwrap();
                assert_eq!(forward(&square), output);
            }
        }
        assert!(GroupNorm::new(tensor(&[6], 1), tensor(&[6], 1), 4, 1e-5).is_err());
    }
}
