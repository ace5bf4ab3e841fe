//! Token id -> row of the embedding table, without an f32 copy of the table.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Result, Tensor};

use super::linear::{Linear, Weight};

/// The table that turns token ids into vectors, and maybe back (a tied head).
#[derive(Debug, Clone)]
pub struct Embedding {
    table: Weight,
}

impl Embedding {
    /// A table of shape (vocabulary, dim), kept quantised.
    ///
    /// # Errors
    /// When the table is not of rank 2.
    pub fn quantized(table: impl Into<Arc<QTensor>>) -> Result<Self> {
        Ok(Self {
            table: Weight::quantized(table.into())?,
        })
    }

    /// A plain table of shape (vocabulary, dim), f32, f16 or bf16.
    ///
    /// # Errors
    /// When the table is not of rank 2.
    pub fn dense(table: Tensor) -> Result<Self> {
        Ok(Self {
            table: Weight::dense(table)?,
        })
    }

    /// ids: (T,) u32 -> (T, dim) f32.
    ///
    /// # Errors
    /// When an id is outside the table.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        match &self.table {
            Weight::Quant(table) => gather(ids, table.in_features(), |id, row| {
                table.dequantize_row(id, row)
            }),
            Weight::Dense(table) => {
                gather(ids, table.in_features(), |id, row| table.widen_row(id, row))
            }
            Weight::Widened(table) => table.embedding(ids)?.to_dtype(DType::F32),
            Weight::StockQuantized { matmul, .. } => matmul.embedding(ids)?.to_dtype(DType::F32),
            Weight::StockDense(table) => table.index_select(ids, 0)?.to_dtype(DType::F32),
        }
    }

    /// The output head over the same weights, which are shared and not copied.
    ///
    /// # Errors
    /// When the weights cannot serve as a linear layer.
    pub fn tied_head(&self) -> Result<Linear> {
        Linear::from_weight(self.table.clone(), None)
    }
}

fn gather(
    ids: &Tensor,
    dim: usize,
    read_row: impl Fn(usize, &mut [f32]) -> Result<()>,
) -> Result<Tensor> {
    let ids = ids.to_vec1::<u32>()?;
    let mut output = vec![0f32; ids.len() * dim];
    for (id, row) in ids.iter().zip(output.chunks_exact_mut(dim)) {
        read_row(*id as usize, row)?;
    }
    Tensor::from_vec(output, (ids.len(), dim), &Device::Cpu)
}
