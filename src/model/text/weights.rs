//! Where a decoder's weights come from: a GGUF file, safetensors, or a seed.
//!
//! A source hands out one part at a time, checked against the shape that the decoder needs, so that
//! no more than one tensor is held twice while a model loads.

pub mod dummy;
pub mod gguf;
pub mod safetensors;

use std::borrow::Cow;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};

use super::config::DecoderConfig;
use super::names::{Naming, Place};
use crate::kernels::embedding::Embedding;
use crate::kernels::linear::Linear;
use crate::model::ModelError;

/// How many unexpected tensors an error names.
const NAMES_IN_AN_ERROR: usize = 5;

/// A weight matrix, `(rows, columns)`.
#[allow(
    clippy::large_enum_variant,
    reason = "with CUDA a QTensor is larger; few weights are alive at once, while loading"
)]
pub enum Weight {
    /// f32, f16 or bf16.
    Dense(Tensor),
    /// In one of llama.cpp's block formats.
    Quantized(QTensor),
}

impl Weight {
    /// A linear layer with this weight and maybe a bias, `(rows,), f32`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn into_linear(self, bias: Option<Tensor>) -> Result<Linear, ModelError> {
        Ok(match self {
            Weight::Dense(weight) => Linear::dense(weight, bias)?,
            Weight::Quantized(weight) => Linear::quantized(weight, bias)?,
        })
    }

    /// An embedding table of this weight.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn into_embedding(self) -> Result<Embedding, ModelError> {
        Ok(match self {
            Weight::Dense(table) => Embedding::dense(table)?,
            Weight::Quantized(table) => Embedding::quantized(table)?,
        })
    }
}

/// Something that has weights by name.
pub trait WeightSource {
    /// How its tensors are named.
    fn naming(&self) -> Naming;

    /// The device that the weights go to.
    fn device(&self) -> &Device;

    /// The matrix at `place`.
    ///
    /// # Errors
    /// Missing or misshapen, with its name.
    fn matrix(&mut self, place: &Place) -> Result<Weight, ModelError>;

    /// A vector of `len` values.
    ///
    /// # Errors
    /// Missing or misshapen, with its name.
    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError>;

    /// Called when the decoder has all it wants.
    ///
    /// # Errors
    /// Names tensors that nobody asked for: the model is not what its configuration says.
    fn finish(&self, config: &DecoderConfig) -> Result<(), ModelError>;

    /// The bias at `place`: `(rows,), f32`.
    ///
    /// # Errors
    /// Missing or misshapen, with its name.
    fn bias(&mut self, place: &Place) -> Result<Tensor, ModelError> {
        let whole = self.vector(&place.bias(), place.total_rows)?;
        let part: Vec<f32> = (0..place.rows)
            .map(|row| whole[place.source_row(row)])
            .collect();
        Ok(Tensor::from_vec(part, place.rows, self.device())?)
    }
}

/// An error for a tensor that is not there.
fn missing(name: &str) -> ModelError {
    ModelError::Load(format!("the model has no tensor {name}"))
}

/// Fails unless the shapes are equal.
fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<(), ModelError> {
    if found == expected {
        return Ok(());
    }
    Err(ModelError::Load(format!(
        "tensor {name} has shape {found:?}; expected {expected:?}"
    )))
}

/// Fails if there are tensors that nobody asked for.
fn check_leftovers<'a>(
    config: &DecoderConfig,
    unused: impl Iterator<Item = &'a str>,
) -> Result<(), ModelError> {
    let mut unused: Vec<_> = unused
        .filter(|name| !super::names::is_expendable(name, config))
        .collect();
    if unused.is_empty() {
        return Ok(());
    }
    unused.sort_unstable();
    let shown = unused[..unused.len().min(NAMES_IN_AN_ERROR)].join(", ");
    Err(ModelError::Load(format!(
        "the model has {} tensors that {} does not know: {shown}{}",
        unused.len(),
        config.family,
        if unused.len() > NAMES_IN_AN_ERROR {
            ", .."
        } else {
            ""
        }
    )))
}

/// The bytes of `place`'s rows out of the whole tensor's, which are `total_rows` rows of one length.
fn select_rows<'a>(place: &Place, bytes: &'a [u8]) -> Cow<'a, [u8]> {
    let row_bytes = bytes.len() / place.total_rows;
    if place.interleaved_heads.is_none() {
        let start = place.first_row * row_bytes;
        return Cow::Borrowed(&bytes[start..start + place.rows * row_bytes]);
    }
    let mut rows = Vec::with_capacity(place.rows * row_bytes);
    for row in 0..place.rows {
        let start = place.source_row(row) * row_bytes;
        rows.extend_from_slice(&bytes[start..start + row_bytes]);
    }
    Cow::Owned(rows)
}

/// A plain tensor of these bytes on the device, in `wanted` if that is given.
fn dense(
    bytes: &[u8],
    dtype: DType,
    wanted: Option<DType>,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor, ModelError> {
    let wanted = wanted.unwrap_or(dtype);
    if wanted == dtype {
        return Ok(Tensor::from_raw_buffer(bytes, dtype, shape, device)?);
    }
    // Converted before it travels: less to send when it shrinks.
    let tensor = Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)?;
    Ok(tensor.to_dtype(wanted)?.to_device(device)?)
}
