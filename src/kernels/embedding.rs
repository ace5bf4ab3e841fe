//! Token id -> row of the embedding table, without an f32 copy of the table.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Result, Tensor};

use super::gather::gather_table;
use super::linear::{Linear, Weight};
use super::tiled::TiledWeight;

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
    /// When an id is outside the table; on a card such a row is NaN.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        match &self.table {
            Weight::Quant(table) => gather(ids, table.in_features(), |id, row| {
                table.dequantize_row(id, row)
            }),
            Weight::Dense(table) => {
                gather(ids, table.in_features(), |id, row| table.widen_row(id, row))
            }
            Weight::Widened(table) => table.weight().embedding(ids)?.to_dtype(DType::F32),
            Weight::StockQuantized { matmul, .. } => matmul.embedding(ids)?.to_dtype(DType::F32),
            Weight::StockDense(table) => gather_table(table, ids, 1.0),
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

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::kernels::test_numbers::numbers;

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn rows_come_back_as_candle_reads_them() {
        let plain = Tensor::from_vec(numbers(50 * 256, 1), (50, 256), &Device::Cpu).unwrap();
        let ids = Tensor::new(&[49u32, 0, 17, 17, 16], &Device::Cpu).unwrap();
        for dtype in [
            GgmlDType::Q8_0,
            GgmlDType::Q4_1,
            GgmlDType::Q6K,
            GgmlDType::Q2K,
            GgmlDType::F16,
        ] {
            let table = QTensor::quantize(&plain, dtype).unwrap();
            let expected = values(&table.embedding(&ids).unwrap());
            assert_eq!(
                values(&Embedding::quantized(table).unwrap().forward(&ids).unwrap()),
                expected,
                "{dtype:?}"
            );
        }
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let table = plain.to_dtype(dtype).unwrap();
            let expected = values(
                &table
                    .index_select(&ids, 0)
                    .unwrap()
                    .to_dtype(DType::F32)
                    .unwrap(),
            );
            assert_eq!(
                values(&Embedding::dense(table).unwrap().forward(&ids).unwrap()),
                expected,
                "{dtype:?}"
            );
        }
    }

    #[test]
    fn an_id_outside_the_table_is_refused() {
        let plain = Tensor::from_vec(numbers(50 * 32, 1), (50, 32), &Device::Cpu).unwrap();
        let outside = Tensor::new(&[50u32], &Device::Cpu).unwrap();
        assert!(
            Embedding::dense(plain.clone())
                .unwrap()
                .forward(&outside)
                .is_err()
        );
        let table = QTensor::quantize(&plain, GgmlDType::Q8_0).unwrap();
        assert!(
            Embedding::quantized(table)
                .unwrap()
                .forward(&outside)
                .is_err()
        );
    }

    #[test]
    fn a_tied_head_shares_the_table() {
        let plain = Tensor::from_vec(numbers(50 * 32, 1), (50, 32), &Device::Cpu).unwrap();
        let embedding =
            Embedding::quantized(QTensor::quantize(&plain, GgmlDType::Q8_0).unwrap()).unwrap();
        let Weight::Quant(table) = &embedding.table else {
            panic!("packed tiles")
        };
        assert_eq!(Arc::strong_count(table), 1);
        let head = embedding.tied_head().unwrap();
        assert_eq!(Arc::strong_count(table), 2);
        assert_eq!((head.out_features(), head.in_features()), (50, 32));
    }
}
