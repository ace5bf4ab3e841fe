//! `y = x Wᵀ + b` for quantised and plain weights.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor, bail};

use super::dense::{DenseMatrix, multiply_widened};
use super::isa::Isa;
use super::quant::QuantMatrix;
use super::reference;
use super::tensor_data::{is_on_cpu, with_slice};

/// A linear layer over token-flat rows.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    /// (n,) f32
    bias: Option<Tensor>,
}

/// A weight of shape (n, k) in the form that its device runs. Clones share the memory.
#[derive(Debug, Clone)]
pub(super) enum Weight {
    /// Quantised tiles, on the CPU.
    Quant(Arc<QuantMatrix>),
    /// Plain tiles, on the CPU.
    Dense(Arc<DenseMatrix>),
    /// As in the file, on the CPU: a format without tile kernels.
    Widened(Arc<QTensor>),
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
        let dims = weight.shape().dims2()?;
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
            _ => Self::Widened(weight),
        })
    }

    /// # Errors
    /// When the weight is not of rank 2, or of a dtype that the CPU has no kernel for.
    pub(super) fn dense(weight: Tensor) -> Result<Self> {
        weight.dims2()?;
        Ok(match is_on_cpu(&weight) {
            true => Self::Dense(Arc::new(DenseMatrix::pack(&weight)?)),
            false => Self::StockDense(weight),
        })
    }

    /// (n, k)
    fn dims(&self) -> (usize, usize) {
        let of_shape = |dims: &[usize]| (dims[0], dims[1]);
        match self {
            Self::Quant(weight) => (weight.out_features(), weight.in_features()),
            Self::Dense(weight) => (weight.out_features(), weight.in_features()),
            Self::Widened(weight) => of_shape(weight.shape().dims()),
            Self::StockQuantized { dims, .. } => *dims,
            Self::StockDense(weight) => of_shape(weight.dims()),
        }
    }
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

    /// x: (rows, k) f32 -> (rows, n) f32.
    ///
    /// # Errors
    /// When `x` is not (rows, k) f32 on the weight's device.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, k) = x.dims2()?;
        if k != self.in_features() {
            bail!(
                "the input has {k} columns, the weight takes {}",
                self.in_features()
            );
        }
        let y = match &self.weight {
            Weight::StockQuantized { matmul, .. } => matmul.forward(&x.contiguous()?)?,
            Weight::StockDense(weight) => reference::dense_linear(x, weight)?,
            Weight::Quant(_) | Weight::Dense(_) | Weight::Widened(_) => return self.forward_cpu(x),
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    fn forward_cpu(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, n, isa) = (x.dim(0)?, self.out_features(), Isa::detected());
        let mut output = vec![0f32; rows * n];
        let mut multiply = |x: &[f32], bias: Option<&[f32]>| match &self.weight {
            Weight::Quant(weight) => {
                weight.multiply(isa, x, bias, &mut output);
                Ok(())
            }
            Weight::Dense(weight) => {
                weight.multiply(isa, x, bias, &mut output);
                Ok(())
            }
            Weight::Widened(weight) => multiply_widened(weight, isa, x, bias, &mut output),
            Weight::StockQuantized { .. } | Weight::StockDense(_) => {
                bail!("the weight is not on the cpu")
            }
        };
        with_slice::<f32, _>(x, |x| match &self.bias {
            Some(bias) => with_slice::<f32, _>(bias, |bias| multiply(x, Some(bias))),
            None => multiply(x, None),
        })?;
        Tensor::from_vec(output, (rows, n), &Device::Cpu)
    }

    /// Columns of the output.
    pub fn out_features(&self) -> usize {
        self.weight.dims().0
    }

    /// Columns of the input.
    pub fn in_features(&self) -> usize {
        self.weight.dims().1
    }
}
