//! `y = x Wᵀ + b` for quantised and plain weights.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor, bail};

use super::dense::{DenseMatrix, WidenedMatrix};
use super::isa::Isa;
use super::quant::QuantMatrix;
use super::reference;
use super::tensor_data::{is_on_cpu, with_slice};
use super::tiled::{InputForm, Product, TiledWeight, multiply};

/// A linear layer over token-flat rows.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    /// (n,) f32
    bias: Option<Tensor>,
}

/// In which numbers a layer multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// 8-bit integers, summed in 32 bits.
    Integer,
    /// Floating-point numbers.
    Float,
}

/// A weight of shape (n, k) in the form that its device runs. Clones share the memory.
#[derive(Debug, Clone)]
pub(super) enum Weight {
    /// Quantised tiles, on the CPU.
    Quant(Arc<QuantMatrix>),
    /// Plain tiles, on the CPU.
    Dense(Arc<DenseMatrix>),
    /// As in the file, on the CPU: a format without tile kernels.
    Widened(Arc<WidenedMatrix>),
    /// Quantised, run by stock Candle on another device.
    StockQuantized {
        matmul: QMatMul,
        dims: (usize, usize),
    },
    /// Plain, run by stock Candle on another device.
    StockDense(Tensor),
}

impl Weight {
    /// # Errors
    /// When the weight is not of rank 2.
    pub(super) fn quantized(weight: Arc<QTensor>) -> Result<Self> {
        let dims = non_empty(weight.shape().dims2()?)?;
        if !weight.device().is_cpu() {
            return Ok(Self::StockQuantized {
                matmul: QMatMul::from_arc(weight)?,
                dims,
            });
        }
        Ok(match weight.dtype() {
            GgmlDType::F32 => Self::Dense(Arc::new(DenseMatrix::pack(
                &weight.dequantize(&Device::Cpu)?,
            )?)),
            GgmlDType::F16 => Self::Dense(Arc::new(DenseMatrix::pack(
                &weight.dequantize_f16(&Device::Cpu)?,
            )?)),
            GgmlDType::BF16 => {
                let plain = weight.dequantize(&Device::Cpu)?.to_dtype(DType::BF16)?;
                Self::Dense(Arc::new(DenseMatrix::pack(&plain)?))
            }
            dtype if QuantMatrix::supports(dtype) => {
                Self::Quant(Arc::new(QuantMatrix::pack(&weight)?))
            }
            _ => Self::Widened(Arc::new(WidenedMatrix::new(weight)?)),
        })
    }

    /// # Errors
    /// When the weight is not of rank 2, or of a dtype that the CPU has no kernel for.
    pub(super) fn dense(weight: Tensor) -> Result<Self> {
        non_empty(weight.dims2()?)?;
        Ok(match is_on_cpu(&weight) {
            true => Self::Dense(Arc::new(DenseMatrix::pack(&weight)?)),
            false => Self::StockDense(weight),
        })
    }

    /// (n, k)
    fn dims(&self) -> (usize, usize) {
        let of_shape = |dims: &[usize]| (dims[0], dims[1]);
        match self {
            Self::StockQuantized { dims, .. } => *dims,
            Self::StockDense(weight) => of_shape(weight.dims()),
            Self::Quant(_) | Self::Dense(_) | Self::Widened(_) => {
                self.tiled().map_or((0, 0), |weight| {
                    (weight.out_features(), weight.in_features())
                })
            }
        }
    }

    /// The weight as our own CPU kernels read it, unless it is on another device.
    fn tiled(&self) -> Option<&dyn TiledWeight> {
        match self {
            Self::Quant(weight) => Some(&**weight),
            Self::Dense(weight) => Some(&**weight),
            Self::Widened(weight) => Some(&**weight),
            Self::StockQuantized { .. } | Self::StockDense(_) => None,
        }
    }

    fn bytes(&self) -> usize {
        let of_tensor = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        match self {
            Self::StockQuantized { matmul, .. } => match matmul {
                QMatMul::QTensor(weight) => weight.storage_size_in_bytes(),
                QMatMul::Tensor(weight) | QMatMul::TensorF16(weight) => of_tensor(weight),
            },
            Self::StockDense(weight) => of_tensor(weight),
            Self::Quant(_) | Self::Dense(_) | Self::Widened(_) => {
                self.tiled().map_or(0, TiledWeight::bytes)
            }
        }
    }
}

/// # Errors
/// When a weight has no rows or no columns.
fn non_empty((n, k): (usize, usize)) -> Result<(usize, usize)> {
    if n == 0 || k == 0 {
        bail!("a weight of shape ({n}, {k}) is empty");
    }
    Ok((n, k))
}

impl Linear {
    /// A layer over a quantised weight of shape (n, k), with an optional bias of shape (n,).
    ///
    /// On the CPU the weight is repacked and the tensor given is not kept.
    ///
    /// # Errors
    /// When the weight is not of rank 2 or the bias does not fit it.
    pub fn quantized(weight: impl Into<Arc<QTensor>>, bias: Option<Tensor>) -> Result<Self> {
        Self::from_weight(Weight::quantized(weight.into())?, bias)
    }

    /// A layer over a plain weight of shape (n, k), f32, f16 or bf16, with an optional bias of shape (n,).
    ///
    /// # Errors
    /// When the weight is not of rank 2 or the bias does not fit it.
    pub fn dense(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        Self::from_weight(Weight::dense(weight)?, bias)
    }

    /// # Errors
    /// When the bias does not fit the weight.
    pub(super) fn from_weight(weight: Weight, bias: Option<Tensor>) -> Result<Self> {
        let (n, _) = weight.dims();
        if let Some(bias) = &bias
            && bias.dims() != [n]
        {
            bail!(
                "the bias has shape {:?}, the weight has {n} outputs",
                bias.dims()
            );
        }
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// x: (rows, k) f32 -> (rows, n) f32; x of [`Self::activation_dtype`] -> the same, without conversions.
    ///
    /// # Errors
    /// When `x` is not (rows, k) of such numbers on the weight's device.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [y] = forward_all([self], x)?;
        Ok(y)
    }

    /// x: (rows, k) f32, residual: (rows, n) f32 -> their product plus `residual`.
    ///
    /// # Errors
    /// When `x` or `residual` does not fit.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let rows = self.check_input(x)?;
        let shape = (rows, self.out_features());
        if residual.dims() != [shape.0, shape.1] {
            bail!(
                "the residual has shape {:?}, the product {shape:?}",
                residual.dims()
            );
        }
        if self.weight.tiled().is_none() {
            return self.forward(x)? + residual;
        }
        let output = with_slice::<f32, _>(residual, |residual| {
            multiply_layers([self], x, Some(residual))
        })?;
        let [output] = output;
        Tensor::from_vec(output, shape, &Device::Cpu)
    }

    /// x: (rows, k) f32 -> (rows, n) f32 in row-major order, in the memory of the host.
    ///
    /// # Errors
    /// When `x` is not (rows, k) f32 on the weight's device.
    pub fn forward_to_host(&self, x: &Tensor) -> Result<Vec<f32>> {
        self.check_input(x)?;
        match self.weight.tiled() {
            Some(_) => multiply_layers([self], x, None).map(|[output]| output),
            None => self.forward(x)?.flatten_all()?.to_vec1(),
        }
    }

    /// Rows of an input that fits.
    fn check_input(&self, x: &Tensor) -> Result<usize> {
        let (rows, k) = x.dims2()?;
        if k != self.in_features() {
            bail!(
                "the input has {k} columns, the weight takes {}",
                self.in_features()
            );
        }
        Ok(rows)
    }

    fn forward_stock(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::StockQuantized { matmul, .. } => matmul.forward(&x.contiguous()?)?,
            // Numbers of the weight's own type pass through as they are.
            Weight::StockDense(weight) if x.dtype() == weight.dtype() => x.matmul(&weight.t()?)?,
            Weight::StockDense(weight) => reference::dense_linear(x, weight)?,
            Weight::Quant(_) | Weight::Dense(_) | Weight::Widened(_) => {
                bail!("the weight is on the cpu")
            }
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(&bias.to_dtype(y.dtype())?),
            None => Ok(y),
        }
    }

    /// In which numbers it takes its input best: those of a plain weight on another device than the CPU; else f32.
    pub fn activation_dtype(&self) -> DType {
        match &self.weight {
            Weight::StockDense(weight) => weight.dtype(),
            _ => DType::F32,
        }
    }

    /// Columns of the output.
    pub fn out_features(&self) -> usize {
        self.weight.dims().0
    }

    /// Columns of the input.
    pub fn in_features(&self) -> usize {
        self.weight.dims().1
    }

    /// Bytes of the weight as it is kept and read by every product, the padding of its tiles included.
    pub fn weight_bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// In which numbers it multiplies.
    pub fn arithmetic(&self) -> Arithmetic {
        match self.weight.tiled().map(TiledWeight::input_form) {
            Some(InputForm::Blocks { .. }) => Arithmetic::Integer,
            Some(InputForm::Floats) | None => Arithmetic::Float,
        }
    }
}

/// Several layers over one input, x: (rows, k) f32 -> a (rows, n) f32 of each; other numbers as in [`Linear::forward`]. On the CPU the input is quantised once
/// and all of it is one parallel loop.
///
/// # Errors
/// When `x` is not (rows, k) f32 on the weights' device.
pub fn forward_all<const LAYERS: usize>(
    layers: [&Linear; LAYERS],
    x: &Tensor,
) -> Result<[Tensor; LAYERS]> {
    let mut rows = 0;
    for layer in layers {
        rows = layer.check_input(x)?;
    }
    let outputs: Vec<Tensor> = if layers.iter().all(|layer| layer.weight.tiled().is_some()) {
        let outputs = multiply_layers(layers, x, None)?;
        let tensors = outputs.into_iter().zip(layers).map(|(output, layer)| {
            Tensor::from_vec(output, (rows, layer.out_features()), &Device::Cpu)
        });
        tensors.collect::<Result<_>>()?
    } else {
        layers
            .iter()
            .map(|layer| layer.forward_stock(x))
            .collect::<Result<_>>()?
    };
    Ok(outputs.try_into().expect("an output for each layer"))
}

/// The products of layers that are all on the CPU.
fn multiply_layers<const LAYERS: usize>(
    layers: [&Linear; LAYERS],
    x: &Tensor,
    residual: Option<&[f32]>,
) -> Result<[Vec<f32>; LAYERS]> {
    let k = x.dim(1)?;
    let biases = layers.map(|layer| layer.bias.as_ref().map(Tensor::to_vec1::<f32>));
    let mut products = Vec::with_capacity(LAYERS);
    let biases = biases
        .into_iter()
        .map(Option::transpose)
        .collect::<Result<Vec<_>>>()?;
    for (layer, bias) in layers.iter().zip(&biases) {
        let Some(weight) = layer.weight.tiled() else {
            bail!("the weight is not on the cpu");
        };
        products.push(Product {
            weight,
            bias: bias.as_deref(),
            residual,
        });
    }
    let outputs = with_slice::<f32, _>(x, |x| multiply(Isa::detected(), x, k, &products))?;
    Ok(outputs.try_into().expect("an output for each layer"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::test_numbers::{largest, numbers};

    fn tensor(rows: usize, columns: usize, seed: u64) -> Tensor {
        Tensor::from_vec(numbers(rows * columns, seed), (rows, columns), &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Layers of every way that a weight may be kept, each with the weight that it stands for in f32.
    fn layers(n: usize, k: usize) -> Vec<(String, Linear, Tensor)> {
        let plain = tensor(n, k, 3);
        let mut layers = Vec::new();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let weight = plain.to_dtype(dtype).unwrap();
            let wide = weight.to_dtype(DType::F32).unwrap();
            layers.push((
                format!("{dtype:?}"),
                Linear::dense(weight, None).unwrap(),
                wide,
            ));
        }
        for dtype in [
            GgmlDType::F32,
            GgmlDType::F16,
            GgmlDType::BF16,
            GgmlDType::Q2K,
            GgmlDType::Q3K,
            GgmlDType::Q8K,
        ] {
            if k.is_multiple_of(dtype.block_size()) {
                let weight = QTensor::quantize(&plain, dtype).unwrap();
                let wide = weight.dequantize(&Device::Cpu).unwrap();
                layers.push((
                    format!("gguf {dtype:?}"),
                    Linear::quantized(weight, None).unwrap(),
                    wide,
                ));
            }
        }
        layers
    }

    #[test]
    fn plain_and_widened_products_are_right_on_odd_shapes() {
        for (n, k) in [(1, 1), (7, 31), (33, 64), (16, 577), (40, 512)] {
            for (name, layer, weight) in layers(n, k) {
                let weight = values(&weight);
                for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 17] {
                    let x = tensor(rows, k, 4);
                    let output = values(&layer.forward(&x).unwrap());
                    for (x, output) in values(&x).chunks(k).zip(output.chunks(n)) {
                        for (weight, output) in weight.chunks(k).zip(output) {
                            let products = || {
                                weight
                                    .iter()
                                    .zip(x)
                                    .map(|(&w, &x)| f64::from(w) * f64::from(x))
                            };
                            let (expected, size) = (
                                products().sum::<f64>(),
                                products().map(f64::abs).sum::<f64>(),
                            );
                            let error = (f64::from(*output) - expected).abs();
                            assert!(
                                error <= 1e-6 * size.max(1.0),
                                "{name} {rows} x {n} x {k}: {output}, {expected}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_company() {
        let (n, k) = (35, 512);
        for (name, layer, _) in layers(n, k) {
            let x = tensor(13, k, 4);
            let together = values(&layer.forward(&x).unwrap());
            for row in 0..13 {
                let alone = layer.forward(&x.narrow(0, row, 1).unwrap()).unwrap();
                assert_eq!(
                    values(&alone),
                    together[row * n..(row + 1) * n],
                    "{name} row {row}"
                );
            }
        }
    }

    #[test]
    fn instruction_sets_agree_bit_for_bit_on_plain_weights() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (n, k) = (35, 77);
            let matrix = DenseMatrix::pack(&tensor(n, k, 3).to_dtype(dtype).unwrap()).unwrap();
            for rows in [1, 2, 3, 4, 5, 6, 7, 8, 11] {
                let x = numbers(rows * k, 9);
                let outputs = Isa::available().into_iter().map(|isa| {
                    let product = Product {
                        weight: &matrix,
                        bias: None,
                        residual: None,
                    };
                    multiply(isa, &x, k, &[product]).unwrap().remove(0)
                });
                let outputs: Vec<_> = outputs.collect();
                assert!(
                    outputs.iter().all(|output| *output == outputs[0]),
                    "{dtype:?} {rows} rows"
                );
            }
        }
    }

    #[test]
    fn layers_together_equal_each_alone_on_any_thread() {
        let weight = |n, dtype| QTensor::quantize(&tensor(n, 256, n as u64), dtype).unwrap();
        let a = Linear::quantized(weight(48, GgmlDType::Q4K), None).unwrap();
        let bias = tensor(1, 7, 8).flatten_all().unwrap();
        let b = Linear::quantized(weight(7, GgmlDType::Q6K), Some(bias)).unwrap();
        let c = Linear::dense(tensor(33, 256, 5), None).unwrap();
        for rows in [1, 3, 40] {
            let x = tensor(rows, 256, 4);
            let alone: Vec<_> = [&a, &b, &c]
                .map(|layer| values(&layer.forward(&x).unwrap()))
                .into();
            let together = || forward_all([&a, &b, &c], &x).unwrap().map(|y| values(&y));
            assert_eq!(together().to_vec(), alone);
            // Within a loop of the pool a product runs on one thread.
            let on_one_thread = std::sync::Mutex::new(Vec::new());
            crate::kernels::threads::for_each_chunk(&mut [0; 2], 1, |_, _| {
                on_one_thread.lock().unwrap().push(together().to_vec());
            });
            assert!(
                on_one_thread
                    .into_inner()
                    .unwrap()
                    .iter()
                    .all(|each| *each == alone)
            );
        }
    }

    #[test]
    fn a_residual_is_added_and_must_fit() {
        let layer = Linear::quantized(
            QTensor::quantize(&tensor(35, 64, 3), GgmlDType::Q4_0).unwrap(),
            None,
        )
        .unwrap();
        let (x, residual) = (tensor(5, 64, 4), tensor(5, 35, 6));
        let expected = (layer.forward(&x).unwrap() + &residual).unwrap();
        assert_eq!(
            values(&layer.forward_add(&x, &residual).unwrap()),
            values(&expected)
        );
        assert!(layer.forward_add(&x, &tensor(4, 35, 6)).is_err());
        assert!(layer.forward_add(&x, &tensor(5, 34, 6)).is_err());
        assert_eq!(
            layer.forward_to_host(&x).unwrap(),
            values(&layer.forward(&x).unwrap())
        );
    }

    #[test]
    fn a_bias_is_added_to_every_row() {
        for dtype in [DType::F32, DType::F16] {
            let bias = tensor(1, 35, 8)
                .flatten_all()
                .unwrap()
                .to_dtype(dtype)
                .unwrap();
            let weight = || QTensor::quantize(&tensor(35, 64, 3), GgmlDType::Q4_1).unwrap();
            let x = tensor(5, 64, 4);
            let with = Linear::quantized(weight(), Some(bias.clone()))
                .unwrap()
                .forward(&x)
                .unwrap();
            let without = Linear::quantized(weight(), None)
                .unwrap()
                .forward(&x)
                .unwrap();
            let added = (with - without)
                .unwrap()
                .broadcast_sub(&bias.to_dtype(DType::F32).unwrap())
                .unwrap();
            assert!(largest(&values(&added)) < 1e-5);
        }
    }

    #[test]
    fn a_weight_tells_its_size_and_its_arithmetic() {
        for (dtype, bytes) in [
            (GgmlDType::Q4_1, 32 * 64 * 20 / 32),
            (GgmlDType::Q8_0, 32 * 64 * 34 / 32),
            (GgmlDType::F16, 32 * 64 * 2),
        ] {
            let weight = QTensor::quantize(&tensor(32, 64, 3), dtype).unwrap();
            let layer = Linear::quantized(weight, None).unwrap();
            assert_eq!(layer.weight_bytes(), bytes, "{dtype:?}");
            let integer = layer.arithmetic() == Arithmetic::Integer;
            assert_eq!(integer, dtype != GgmlDType::F16, "{dtype:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let weight = || tensor(4, 6, 1);
        let bias = Tensor::zeros(5, DType::F32, &Device::Cpu).unwrap();
        assert!(
            Linear::dense(weight(), Some(bias)).is_err(),
            "a bias of another length"
        );
        assert!(
            Linear::dense(weight().to_dtype(DType::F64).unwrap(), None).is_err(),
            "f64"
        );
        assert!(
            Linear::dense(weight().flatten_all().unwrap(), None).is_err(),
            "rank 1"
        );
        assert!(
            Linear::dense(
                Tensor::zeros((4, 0), DType::F32, &Device::Cpu).unwrap(),
                None
            )
            .is_err(),
            "no columns"
        );
        let layer = Linear::dense(weight(), None).unwrap();
        assert_eq!((layer.out_features(), layer.in_features()), (4, 6));
        assert!(layer.forward(&tensor(2, 4, 1)).is_err(), "another width");
        assert_eq!(
            layer.forward(&tensor(0, 6, 1)).unwrap().dims(),
            [0, 4],
            "no rows"
        );
    }
}
