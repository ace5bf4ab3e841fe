//! `y = x Wᵀ + b` for quantised and plain weights.

use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{Device, Module, Result, Tensor, bail};

use super::tensor_data::{is_on_cpu, with_slice};
use super::{reference, threads};

/// A linear layer over token-flat rows.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    in_features: usize,
    out_features: usize,
}

#[derive(Debug, Clone)]
enum Weight {
    /// (n, k) f32 rows, run by our own code.
    Cpu(Arc<Vec<f32>>),
    /// Run by stock Candle operations on other devices.
    StockQuantized(QMatMul),
    StockDense(Tensor),
}

impl Linear {
    /// A layer over a quantised weight of shape (n, k), with an optional bias of shape (n,).
    ///
    /// On the CPU the weight is repacked, and the tensor given is not kept.
    ///
    /// # Errors
    /// When the weight is not of rank 2 or the bias does not fit it.
    pub fn quantized(weight: impl Into<Arc<QTensor>>, bias: Option<Tensor>) -> Result<Self> {
        let weight = weight.into();
        let (n, k) = weight.shape().dims2()?;
        let stored = match weight.device() {
            Device::Cpu => Weight::Cpu(Arc::new(
                weight.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?,
            )),
            _ => Weight::StockQuantized(QMatMul::from_arc(weight)?),
        };
        Self::from_parts(stored, bias, n, k)
    }

    /// A layer over a plain weight of shape (n, k), f32, f16 or bf16, with an optional bias of shape (n,).
    ///
    /// # Errors
    /// When the weight is not of rank 2 or the bias does not fit it.
    pub fn dense(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (n, k) = weight.dims2()?;
        let stored = if is_on_cpu(&weight) {
            Weight::Cpu(Arc::new(
                weight
                    .to_dtype(candle_core::DType::F32)?
                    .flatten_all()?
                    .to_vec1()?,
            ))
        } else {
            Weight::StockDense(weight)
        };
        Self::from_parts(stored, bias, n, k)
    }

    fn from_parts(weight: Weight, bias: Option<Tensor>, n: usize, k: usize) -> Result<Self> {
        if let Some(bias) = &bias
            && bias.dims() != [n]
        {
            bail!(
                "the bias has shape {:?}, the weight has {n} outputs",
                bias.dims()
            );
        }
        let bias = bias
            .map(|bias| bias.to_dtype(candle_core::DType::F32))
            .transpose()?;
        Ok(Self {
            weight,
            bias,
            in_features: k,
            out_features: n,
        })
    }

    /// x: (rows, k) f32 -> (rows, n) f32.
    ///
    /// # Errors
    /// When `x` is not (rows, k) f32 on the weight's device.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, k) = x.dims2()?;
        if k != self.in_features {
            bail!(
                "the input has {k} columns, the weight takes {}",
                self.in_features
            );
        }
        let y = match &self.weight {
            Weight::Cpu(weight) => self.forward_cpu(x, weight, rows)?,
            Weight::StockQuantized(weight) => weight.forward(&x.contiguous()?)?,
            Weight::StockDense(weight) => reference::dense_linear(x, weight)?,
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    fn forward_cpu(&self, x: &Tensor, weight: &[f32], rows: usize) -> Result<Tensor> {
        let (n, k) = (self.out_features, self.in_features);
        let mut output = vec![0f32; rows * n];
        with_slice::<f32, _>(x, |x| {
            threads::for_each_chunk(&mut output, n, |row, output| {
                let x = &x[row * k..(row + 1) * k];
                for (column, out) in output.iter_mut().enumerate() {
                    *out = dot(x, &weight[column * k..(column + 1) * k]);
                }
            });
            Ok(())
        })?;
        Tensor::from_vec(output, (rows, n), &Device::Cpu)
    }

    /// Columns of the output.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns of the input.
    pub fn in_features(&self) -> usize {
        self.in_features
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..16 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    lanes.iter().sum::<f32>() + tail
}
