//! Linear layers over many tokens or pixels.

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor, bail};

use super::elementwise::geglu;
use super::finish::{multiply_tensor, with_optional};
use super::panel::COLUMNS;
use super::product::{Geometry, PackedWeight};
use crate::kernels::linear as token_flat;
use crate::kernels::tensor_data::{is_on_cpu, with_slice};

/// `y = x Wᵀ + b` over the last dimension.
///
/// Beside [`crate::kernels::linear::Linear`], which is made for a few rows and quantised weights, this one is made for
/// the thousands of rows of a picture.
#[derive(Debug, Clone)]
pub struct Linear {
    form: Form,
    out: usize,
    inputs: usize,
}

#[derive(Debug, Clone)]
enum Form {
    /// f32, on the CPU.
    Packed {
        weight: Arc<PackedWeight>,
        /// (out,) f32
        bias: Option<Tensor>,
    },
    /// In half precision, in which it is kept, or on another device.
    Flat(token_flat::Linear),
}

impl Linear {
    /// weight: (out, in) f32, f16 or bf16, bias: (out,).
    ///
    /// # Errors
    /// When the weight is empty or not of rank 2, or the bias does not fit it.
    pub fn dense(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (out, inputs) = weight.dims2()?;
        if out == 0 || inputs == 0 {
            bail!("a weight of shape ({out}, {inputs}) is empty");
        }
        if let Some(bias) = &bias
            && bias.dims() != [out]
        {
            bail!(
                "the bias has shape {:?}, the weight has {out} outputs",
                bias.dims()
            );
        }
        let form = match is_on_cpu(&weight) && weight.dtype() == DType::F32 {
            true => Form::Packed {
                weight: Arc::new(PackedWeight::pack(&weight.reshape((out, inputs, 1))?)?),
                bias: bias.map(|bias| bias.to_dtype(DType::F32)).transpose()?,
            },
            false => Form::Flat(token_flat::Linear::dense(weight, bias)?),
        };
        Ok(Self { form, out, inputs })
    }

    /// Bytes of the weight as it is kept.
    pub fn weight_bytes(&self) -> usize {
        match &self.form {
            Form::Packed { weight, .. } => weight.bytes(),
            Form::Flat(layer) => layer.weight_bytes(),
        }
    }

    /// x: (.., in) -> (.., out), of the same dtype.
    ///
    /// # Errors
    /// When `x` has other columns, or on the CPU is not f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None)
    }

    /// x: (.., in), residual: (.., out) -> their product plus `residual`.
    ///
    /// # Errors
    /// As [`Self::forward`], or when the residual does not fit.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.apply(x, Some(residual))
    }

    fn apply(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let shape = self.output_shape(x)?;
        if let Some(residual) = residual
            && residual.dims() != shape
        {
            bail!(
                "the residual has shape {:?}, the product {shape:?}",
                residual.dims()
            );
        }
        match &self.form {
            Form::Packed { weight, bias } => {
                let geometry = Geometry::rows(x.elem_count() / self.inputs);
                multiply_tensor(
                    |x, addends| weight.multiply(x, &geometry, addends),
                    x,
                    bias.as_ref(),
                    None,
                    residual,
                    &shape,
                )
            }
            Form::Flat(layer) => {
                let flat = x.reshape(((), self.inputs))?;
                let y = match residual {
                    Some(residual) => {
                        let residual = residual.reshape(((), self.out))?;
                        layer.forward_add(&flat, &residual.to_dtype(DType::F32)?)?
                    }
                    None => layer.forward(&flat)?,
                };
                y.to_dtype(x.dtype())?.reshape(shape)
            }
        }
    }

    fn output_shape(&self, x: &Tensor) -> Result<Vec<usize>> {
        if x.dim(D::Minus1)? != self.inputs || x.elem_count() == 0 {
            bail!(
                "the input has shape {:?}, the weight takes {} columns",
                x.dims(),
                self.inputs
            );
        }
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.out;
        }
        Ok(shape)
    }
}

/// Several layers over one input, x: (.., in) -> (.., out) of each, of the same dtype.
///
/// # Errors
/// When `x` has other columns, or on the CPU is not f32.
pub fn forward_all<const LAYERS: usize>(
    layers: [&Linear; LAYERS],
    x: &Tensor,
) -> Result<[Tensor; LAYERS]> {
    let shapes = layers.iter().map(|layer| layer.output_shape(x));
    let shapes = shapes.collect::<Result<Vec<_>>>()?;
    let flat = layers.map(|layer| match &layer.form {
        Form::Flat(layer) => Some(layer),
        Form::Packed { .. } => None,
    });
    let outputs = if flat.iter().all(Option::is_some) {
        // One parallel loop over all of them.
        let flat = flat.map(|layer| layer.expect("checked above"));
        let x_flat = x.reshape(((), x.dim(D::Minus1)?))?;
        let outputs = token_flat::forward_all(flat, &x_flat)?.into_iter();
        let outputs = outputs.zip(shapes);
        outputs
            .map(|(y, shape)| y.to_dtype(x.dtype())?.reshape(shape))
            .collect::<Result<Vec<_>>>()?
    } else {
        let outputs = layers.iter().map(|layer| layer.forward(x));
        outputs.collect::<Result<Vec<_>>>()?
    };
    Ok(outputs.try_into().expect("an output for each layer"))
}

/// A linear layer with GEGLU behind it: `value * gelu_erf(gate)`, of which each tile is finished while it is at hand.
#[derive(Debug, Clone)]
pub struct Geglu {
    layer: Linear,
    /// Whether tiles of values and of gates take turns.
    in_turns: bool,
}

impl Geglu {
    /// weight: (2 out, in) f32, f16 or bf16, bias: (2 out,), the values' before the gates'.
    ///
    /// # Errors
    /// When the weight has an odd number of rows, or as [`Linear::dense`].
    pub fn dense(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (both, _) = weight.dims2()?;
        if both % 2 != 0 {
            bail!("geglu takes values and gates, not {both} rows");
        }
        let width = both / 2;
        let packed = is_on_cpu(&weight) && weight.dtype() == DType::F32;
        let in_turns = packed && width.is_multiple_of(COLUMNS);
        let layer = if in_turns {
            let order: Vec<u32> = (0..both)
                .map(|row| {
                    let (pair, rest) = (row / (2 * COLUMNS), row % (2 * COLUMNS));
                    let from = match rest < COLUMNS {
                        true => pair * COLUMNS + rest,
                        false => width + pair * COLUMNS + rest - COLUMNS,
                    };
                    from as u32
                })
                .collect();
            let order = Tensor::new(order, weight.device())?;
            let bias = bias.map(|bias| bias.index_select(&order, 0)).transpose()?;
            Linear::dense(weight.index_select(&order, 0)?, bias)?
        } else {
            Linear::dense(weight, bias)?
        };
        Ok(Self { layer, in_turns })
    }

    /// x: (.., in) -> (.., out), of the same dtype.
    ///
    /// # Errors
    /// When `x` has other columns, or on the CPU is not f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (true, Form::Packed { weight, bias }) = (self.in_turns, &self.layer.form) else {
            return geglu(&self.layer.forward(x)?);
        };
        let mut shape = self.layer.output_shape(x)?;
        if let Some(last) = shape.last_mut() {
            *last /= 2;
        }
        let output = with_slice::<f32, _>(x, |x| {
            with_optional(bias.as_ref(), |bias| Ok(weight.multiply_geglu(x, bias)))
        })?;
        Tensor::from_vec(output, shape, &Device::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::image::test_tensors::{tensor, values};
    use crate::kernels::isa::Isa;
    use crate::kernels::test_numbers::{bits, largest};

    #[test]
    fn products_are_right_on_every_instruction_set_and_alone() {
        for (out, inputs) in [(1, 1), (7, 31), (33, 64), (48, 577), (40, 700)] {
            let (weight, bias) = (tensor(&[out, inputs], 1), tensor(&[out], 2));
            let layer = Linear::dense(weight.clone(), Some(bias.clone())).unwrap();
            for rows in [1, 2, 5, 13, 14, 15, 29] {
                let x = tensor(&[3, rows, inputs], 3);
                let residual = tensor(&[3, rows, out], 4);
                let output = values(&layer.forward_add(&x, &residual).unwrap());
                let (weight, bias) = (values(&weight), values(&bias));
                let (x_values, residuals) = (values(&x), values(&residual));
                for (row, x) in x_values.chunks(inputs).enumerate() {
                    for (column, weight) in weight.chunks(inputs).enumerate() {
                        let products = || {
                            weight
                                .iter()
                                .zip(x)
                                .map(|(&w, &x)| f64::from(w) * f64::from(x))
                        };
                        let at = row * out + column;
                        let expected = products().sum::<f64>()
                            + f64::from(bias[column])
                            + f64::from(residuals[at]);
                        let size = products().map(f64::abs).sum::<f64>() + 4.0;
                        let error = (f64::from(output[at]) - expected).abs();
                        assert!(error <= 1e-6 * size, "{rows} x {out} x {inputs}: {error}");
                    }
                }
                let forward = || bits(&values(&layer.forward_add(&x, &residual).unwrap()));
                for forced in Isa::for_each(forward) {
                    assert_eq!(forced, bits(&output), "{rows} x {out} x {inputs}");
                }
                let one = |t: &Tensor| t.narrow(0, 1, 1).unwrap();
                let alone = values(&layer.forward_add(&one(&x), &one(&residual)).unwrap());
                assert_eq!(alone, output[rows * out..2 * rows * out]);
            }
        }
    }

    #[test]
    fn geglu_equals_its_two_steps() {
        for (width, inputs, rows) in [(16, 7, 3), (48, 33, 30), (20, 16, 5)] {
            let (weight, bias) = (tensor(&[2 * width, inputs], 1), tensor(&[2 * width], 2));
            let x = tensor(&[2, rows, inputs], 3);
            let layer = Linear::dense(weight.clone(), Some(bias.clone())).unwrap();
            let expected = geglu(&layer.forward(&x).unwrap()).unwrap();
            let fused = Geglu::dense(weight, Some(bias)).unwrap();
            let forward = || bits(&values(&fused.forward(&x).unwrap()));
            assert_eq!(fused.forward(&x).unwrap().dims(), expected.dims());
            for forced in Isa::for_each(forward) {
                assert_eq!(forced, bits(&values(&expected)), "{width} {inputs}");
            }
        }
        assert!(Geglu::dense(tensor(&[3, 4], 1), None).is_err());
    }

    #[test]
    fn half_precision_is_kept_and_multiplied_as_f32_would_be() {
        let (weight, bias) = (tensor(&[2 * 48, 33], 1), tensor(&[2 * 48], 2));
        let (x, residual) = (tensor(&[2, 5, 33], 3), tensor(&[2, 5, 2 * 48], 4));
        for dtype in [DType::F16, DType::BF16] {
            let half = weight.to_dtype(dtype).unwrap();
            let wide = half.to_dtype(DType::F32).unwrap();
            let [kept, widened] = [&half, &wide]
                .map(|weight| Linear::dense(weight.clone(), Some(bias.clone())).unwrap());
            assert_eq!(2 * kept.weight_bytes(), widened.weight_bytes());
            let pairs = [
                [&kept, &widened].map(|layer| layer.forward(&x).unwrap()),
                [&kept, &widened].map(|layer| layer.forward_add(&x, &residual).unwrap()),
                [&half, &wide].map(|weight| {
                    let layer = Geglu::dense(weight.clone(), Some(bias.clone())).unwrap();
                    layer.forward(&x).unwrap()
                }),
            ];
            for [kept, widened] in pairs {
                assert_eq!(kept.dims(), widened.dims());
                let difference = values(&(kept - widened).unwrap());
                assert!(largest(&difference) < 1e-5, "{}", largest(&difference));
            }
            let [one, other] = forward_all([&kept, &kept], &x).unwrap();
            let alone = values(&kept.forward(&x).unwrap());
            assert_eq!([&values(&one), &values(&other)], [&alone, &alone]);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let layer = Linear::dense(tensor(&[3, 4], 1), None).unwrap();
        let x = tensor(&[2, 4], 1);
        assert!(layer.forward(&tensor(&[2, 3], 1)).is_err());
        assert!(layer.forward_add(&x, &x).is_err());
        assert!(Linear::dense(tensor(&[3, 4], 1), Some(tensor(&[4], 1))).is_err());
        assert_eq!(layer.weight_bytes(), 4 * 16 * 4);
    }
}
