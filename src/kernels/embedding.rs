//! Token id -> row of the embedding table, without an f32 copy of the table.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Result, Tensor};

use super::linear::Linear;

/// The table that turns token ids into vectors, and maybe back (a tied head).
#[derive(Debug, Clone)]
pub struct Embedding {
    table: Table,
}

#[derive(Debug, Clone)]
enum Table {
    Quantized(Arc<QTensor>),
    Dense(Tensor),
}

impl Embedding {
    /// A table of shape (vocabulary, dim), kept quantised.
    ///
    /// # Errors
    /// When the table is not of rank 2.
    pub fn quantized(table: impl Into<Arc<QTensor>>) -> Result<Self> {
        let table = table.into();
        table.shape().dims2()?;
        Ok(Self {
            table: Table::Quantized(table),
        })
    }

    /// A plain table of shape (vocabulary, dim), f32, f16 or bf16.
    ///
    /// # Errors
    /// When the table is not of rank 2.
    pub fn dense(table: Tensor) -> Result<Self> {
        table.dims2()?;
        Ok(Self {
            table: Table::Dense(table),
        })
    }

    /// ids: (T,) u32 -> (T, dim) f32.
    ///
    /// # Errors
    /// When an id is outside the table.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        match &self.table {
            Table::Quantized(table) => table.embedding(ids),
            Table::Dense(table) => table.index_select(ids, 0)?.to_dtype(DType::F32),
        }
    }

    /// The output head over the same weights, which are shared and not copied.
    ///
    /// # Errors
    /// When the weights cannot serve as a linear layer.
    pub fn tied_head(&self) -> Result<Linear> {
        match &self.table {
            Table::Quantized(table) => Linear::quantized(table.clone(), None),
            Table::Dense(table) => Linear::dense(table.clone(), None),
        }
    }
}
