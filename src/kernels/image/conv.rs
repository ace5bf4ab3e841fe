//! Convolution over pixels.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};

use super::elementwise::{add, add_per_row};
use super::finish::{Addends, multiply_tensor};
use super::group_norm::GroupNorm;
use super::product::{Geometry, PackedWeight};
use super::stock;
use super::winograd::WinogradWeight;
use crate::kernels::tensor_data::is_on_cpu;

/// How the kernel moves over the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvOptions {
    /// Pixels from one output to the next, both ways.
    pub stride: usize,
    /// Zeros around the picture.
    pub padding: Padding,
}

/// Zeros around a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// So many on each side.
    Same(usize),
    /// One below and one to the right: how the VAE's encoder halves a picture.
    BottomRight,
}

impl Padding {
    /// Before the first pixel, and in all, along one direction.
    fn amounts(self) -> (usize, usize) {
        match self {
            Self::Same(padding) => (padding, 2 * padding),
            Self::BottomRight => (0, 1),
        }
    }
}

/// A convolution with a weight of shape (out, in, kernel height, kernel width).
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Weight,
    /// (out,) f32
    bias: Option<Tensor>,
    options: ConvOptions,
    /// (out, in, kernel height, kernel width)
    dims: (usize, usize, usize, usize),
}

/// Channels below which transforming pixels takes longer than multiplying them.
const MIN_WINOGRAD_CHANNELS: usize = 16;

#[derive(Debug, Clone)]
enum Weight {
    /// On the CPU.
    Packed(Arc<PackedWeight>),
    /// On the CPU, 3 x 3 pixel by pixel.
    Winograd(Arc<WinogradWeight>),
    /// As it came, on another device.
    Stock(Tensor),
}

impl Conv2d {
    /// weight: (out, in, kernel height, kernel width) f32, f16 or bf16; bias: (out,).
    ///
    /// # Errors
    /// When the bias does not fit, the weight is empty or the stride is 0.
    pub fn new(weight: Tensor, bias: Option<Tensor>, options: ConvOptions) -> Result<Self> {
        let dims = weight.dims4()?;
        if weight.elem_count() == 0 || options.stride == 0 {
            bail!(
                "a convolution with a weight of shape {:?} and stride {} is empty",
                weight.dims(),
                options.stride
            );
        }
        if let Some(bias) = &bias
            && bias.dims() != [dims.0]
        {
            bail!(
                "the bias has shape {:?}, the convolution {} outputs",
                bias.dims(),
                dims.0
            );
        }
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)).transpose()?;
        let weight = match is_on_cpu(&weight) {
            true => {
                let (out, channels, height, width) = dims;
                let flat = weight.reshape((out, channels, height * width))?;
                if (height, width) == (3, 3)
                    && options.stride == 1
                    && options.padding == Padding::Same(1)
                    && out.min(channels) >= MIN_WINOGRAD_CHANNELS
                {
                    Weight::Winograd(Arc::new(WinogradWeight::pack(&flat)?))
                } else {
                    Weight::Packed(Arc::new(PackedWeight::pack(&flat)?))
                }
            }
            false => Weight::Stock(weight),
        };
        Ok(Self {
            weight,
            bias,
            options,
            dims,
        })
    }

    /// Channels of the output.
    pub fn out_channels(&self) -> usize {
        self.dims.0
    }

    /// Channels of the input.
    pub fn in_channels(&self) -> usize {
        self.dims.1
    }

    /// x: (rows, height, width, in) -> (rows, height', width', out).
    ///
    /// # Errors
    /// When `x` has other channels, is smaller than the kernel, or on the CPU is not f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None, None)
    }

    /// As [`Self::forward`], plus residual: (rows, height', width', out).
    ///
    /// # Errors
    /// As [`Self::forward`], or when the residual does not fit.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.apply(x, None, Some(residual))
    }

    /// As [`Self::forward`], plus bias: (rows, out), the row's own, on each of its pixels.
    ///
    /// # Errors
    /// As [`Self::forward`], or when the bias does not fit.
    pub fn forward_add_per_row(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        self.apply(x, Some(bias), None)
    }

    /// `silu(norm(y))` of y as [`Self::forward_add_per_row`] gives it. The bias is added where it costs least: on the CPU
    /// with the product, on a card with the norm. `x` is freed before the norm's output is made: the largest pictures need
    /// the room.
    ///
    /// # Errors
    /// As [`Self::forward_add_per_row`], or when the norm does not fit.
    pub fn forward_add_norm_silu(
        &self,
        x: Tensor,
        bias: &Tensor,
        norm: &GroupNorm,
    ) -> Result<Tensor> {
        if is_on_cpu(&x) {
            let y = self.forward_add_per_row(&x, bias)?;
            drop(x);
            return norm.forward_silu(&y);
        }
        let y = self.forward(&x)?;
        drop(x);
        norm.forward_silu_after_add(&y, bias)
    }

    fn apply(
        &self,
        x: &Tensor,
        per_row: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (rows, height, width, _) = x.dims4()?;
        let (out_height, out_width) = self.output_size(x)?;
        let shape = [rows, out_height, out_width, self.dims.0];
        if let Some(residual) = residual
            && residual.dims() != shape
        {
            bail!(
                "the residual has shape {:?}, the convolution {shape:?}",
                residual.dims()
            );
        }
        if let Some(bias) = per_row
            && bias.dims() != [rows, self.dims.0]
        {
            bail!(
                "the bias per row has shape {:?}, the convolution {shape:?}",
                bias.dims()
            );
        }
        let geometry = Geometry {
            kernel_width: self.dims.3,
            stride: self.options.stride,
            before: self.options.padding.amounts().0,
            height,
            width,
            out_height,
            out_width,
        };
        let bias = self.bias.as_ref();
        match &self.weight {
            Weight::Packed(weight) => {
                let multiply =
                    |x: &[f32], addends: &Addends<'_>| weight.multiply(x, &geometry, addends);
                multiply_tensor(multiply, x, bias, per_row, residual, &shape)
            }
            Weight::Winograd(weight) => {
                let multiply =
                    |x: &[f32], addends: &Addends<'_>| weight.multiply(x, height, width, addends);
                multiply_tensor(multiply, x, bias, per_row, residual, &shape)
            }
            Weight::Stock(weight) => {
                let mut y = stock::conv2d(x, weight, bias, self.options)?;
                if let Some(bias) = per_row {
                    y = add_per_row(&y, bias)?;
                }
                match residual {
                    Some(residual) => add(&y, residual),
                    None => Ok(y),
                }
            }
        }
    }

    /// Height and width of the output.
    fn output_size(&self, x: &Tensor) -> Result<(usize, usize)> {
        let (_, height, width, channels) = x.dims4()?;
        if channels != self.dims.1 {
            bail!(
                "the convolution takes {} channels, the input has shape {:?}",
                self.dims.1,
                x.dims()
            );
        }
        let (_, padding) = self.options.padding.amounts();
        let size = |pixels: usize, kernel: usize| {
            let room = (pixels + padding).checked_sub(kernel)?;
            Some(room / self.options.stride + 1)
        };
        match (size(height, self.dims.2), size(width, self.dims.3)) {
            (Some(height), Some(width)) if x.elem_count() > 0 => Ok((height, width)),
            _ => bail!(
                "an input of shape {:?} is too small for a kernel of {} x {}",
                x.dims(),
                self.dims.2,
                self.dims.3
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::image::test_tensors::{tensor, values};
    use crate::kernels::isa::Isa;
    use crate::kernels::test_numbers::{bits, largest};

    /// (kernel, stride, padding)
    const KINDS: [(usize, usize, Padding); 5] = [
        (3, 1, Padding::Same(1)),
        (1, 1, Padding::Same(0)),
        (3, 2, Padding::Same(1)),
        (3, 2, Padding::BottomRight),
        (2, 2, Padding::Same(0)),
    ];

    #[test]
    fn convolution_equals_stock_on_every_instruction_set_and_alone() {
        for (kernel, stride, padding) in KINDS {
            for (height, width, channels, out) in
                [(4, 4, 1, 1), (5, 7, 3, 17), (9, 6, 33, 40), (3, 19, 16, 64)]
            {
                let options = ConvOptions { stride, padding };
                let weight = tensor(&[out, channels, kernel, kernel], 1);
                let bias = tensor(&[out], 2);
                let x = tensor(&[3, height, width, channels], 3);
                let stock = stock::conv2d(&x, &weight, Some(&bias), options).unwrap();
                let conv = Conv2d::new(weight, Some(bias), options).unwrap();
                let output = conv.forward(&x).unwrap();
                assert_eq!(output.dims(), stock.dims());
                let residual = tensor(output.dims(), 4);
                let per_row = tensor(&[3, out], 5);
                let shapes = format!("{options:?} {height} x {width} x {channels} to {out}");
                let expected = [
                    stock.clone(),
                    (&stock + &residual).unwrap(),
                    stock
                        .broadcast_add(&per_row.reshape((3, 1, 1, out)).unwrap())
                        .unwrap(),
                ];
                let forward = |x: &Tensor, kind: usize, row: Option<usize>| {
                    let of = |t: &Tensor| row.map_or(t.clone(), |row| t.narrow(0, row, 1).unwrap());
                    values(&match kind {
                        0 => conv.forward(&of(x)).unwrap(),
                        1 => conv.forward_add(&of(x), &of(&residual)).unwrap(),
                        _ => conv.forward_add_per_row(&of(x), &of(&per_row)).unwrap(),
                    })
                };
                for (kind, expected) in expected.iter().enumerate() {
                    let output = forward(&x, kind, None);
                    let difference: Vec<f32> = output
                        .iter()
                        .zip(values(expected))
                        .map(|(a, b)| a - b)
                        .collect();
                    assert!(
                        largest(&difference) < 3e-5,
                        "{shapes}: {}",
                        largest(&difference)
                    );
                    for forced in Isa::for_each(|| bits(&forward(&x, kind, None))) {
                        assert_eq!(forced, bits(&output), "{shapes}");
                    }
                    for row in 0..3 {
                        let alone = forward(&x, kind, Some(row));
                        assert_eq!(
                            alone,
                            output[row * alone.len()..(row + 1) * alone.len()],
                            "{shapes}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn half_weights_are_taken_as_they_are() {
        let options = ConvOptions {
            stride: 1,
            padding: Padding::Same(1),
        };
        for dtype in [DType::F16, DType::BF16] {
            let weight = tensor(&[20, 5, 3, 3], 1).to_dtype(dtype).unwrap();
            let wide = weight.to_dtype(DType::F32).unwrap();
            let x = tensor(&[1, 6, 5, 5], 2);
            let half = Conv2d::new(weight, None, options)
                .unwrap()
                .forward(&x)
                .unwrap();
            let wide = Conv2d::new(wide, None, options)
                .unwrap()
                .forward(&x)
                .unwrap();
            assert_eq!(values(&half), values(&wide));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let options = ConvOptions {
            stride: 1,
            padding: Padding::Same(0),
        };
        let conv = Conv2d::new(tensor(&[2, 3, 3, 3], 1), None, options).unwrap();
        assert!(conv.forward(&tensor(&[1, 5, 5, 4], 1)).is_err());
        assert!(conv.forward(&tensor(&[1, 2, 5, 3], 1)).is_err());
        let x = tensor(&[1, 5, 5, 3], 1);
        assert!(conv.forward_add(&x, &x).is_err());
        assert!(conv.forward_add_per_row(&x, &tensor(&[1, 3], 1)).is_err());
        assert!(Conv2d::new(tensor(&[2, 3, 3, 3], 1), Some(tensor(&[3], 1)), options).is_err());
    }
}
