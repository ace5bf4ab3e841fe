//! Weights of a GGUF file, memory-mapped.

use std::collections::HashSet;
use std::fs::File;
use std::io::Cursor;
use std::panic::catch_unwind;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, TensorInfo};
use candle_core::quantized::{GgmlDType, QTensor, ggml_file};
use candle_core::{DType, Device};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use super::{Weight, WeightSource, check_leftovers, check_shape, dense, missing, select_rows};
use crate::model::ModelError;
use crate::model::text::config::DecoderConfig;
use crate::model::text::config::gguf::RopeFactors;
use crate::model::text::names::{Naming, Place};

/// Candle reads blocks in place and insists on their alignment; the format promises more.
const BLOCK_ALIGNMENT: usize = 4;

/// A GGUF file: its metadata, and its tensors' bytes on demand.
pub struct GgufFile {
    content: Content,
    bytes: Mmap,
}

impl GgufFile {
    /// Opens a file and reads its metadata.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let wrong = |error: &dyn std::fmt::Display| {
            ModelError::Load(format!("cannot read {}: {error}", path.display()))
        };
        let file = File::open(path).map_err(|error| wrong(&error))?;
        let bytes = map(&file).map_err(|error| wrong(&error))?;
        let content = read_header(&bytes).map_err(|error| wrong(&error))?;
        Ok(GgufFile { content, bytes })
    }

    /// Its metadata and list of tensors.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Drops the metadata, of which the vocabulary is the most, and keeps the tensors.
    pub fn forget_metadata(&mut self) {
        self.content.metadata = Default::default();
    }

    /// The factors for rotary frequencies that it holds.
    ///
    /// # Errors
    /// A tensor of factors cannot be read.
    pub fn rope_factors(&self) -> Result<RopeFactors, ModelError> {
        let factors = |name: &str| {
            let Some(info) = self.content.tensor_infos.get(name) else {
                return Ok(None);
            };
            self.floats(name, info).map(Some)
        };
        Ok(RopeFactors {
            frequencies: factors("rope_freqs.weight")?,
            short: factors("rope_factors_short.weight")?,
            long: factors("rope_factors_long.weight")?,
        })
    }

    /// The tensor's bytes.
    fn tensor_bytes(&self, name: &str, info: &TensorInfo) -> Result<&[u8], ModelError> {
        let outside = || ModelError::Load(format!("tensor {name} reaches beyond the file's end"));
        let dims = info.shape.dims();
        let elements = dims.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let elements = elements.ok_or_else(outside)?;
        let (block, block_bytes) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
        let columns = info.shape.dims().last().copied().unwrap_or(0);
        if elements == 0 || !columns.is_multiple_of(block) {
            return Err(ModelError::Load(format!(
                "tensor {name} has rows of {columns} values; {:?} packs {block} at a time",
                info.ggml_dtype
            )));
        }
        let len = (elements / block)
            .checked_mul(block_bytes)
            .ok_or_else(outside)?;
        let start = self
            .content
            .tensor_data_offset
            .checked_add(info.offset)
            .and_then(|start| usize::try_from(start).ok())
            .ok_or_else(outside)?;
        if !start.is_multiple_of(BLOCK_ALIGNMENT) {
            return Err(ModelError::Load(format!(
                "tensor {name} starts at byte {start}, which is no multiple of {BLOCK_ALIGNMENT}"
            )));
        }
        let end = start.checked_add(len).ok_or_else(outside)?;
        self.bytes.get(start..end).ok_or_else(outside)
    }

    /// Lets go of the memory that shows these bytes of the file, which were copied: while a model loads, file and weights
    /// would otherwise both take room. Whoever looks again reads them again.
    fn forget_pages(&self, bytes: &[u8]) {
        #[cfg(unix)]
        {
            let offset = bytes.as_ptr().addr() - self.bytes.as_ptr().addr();
            // SAFETY: of a mapping that is only read, the system brings the same bytes back from the file.
            #[expect(unsafe_code, reason = "not every mapping may be dropped; this one may")]
            let forgotten = unsafe {
                self.bytes
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, offset, bytes.len())
            };
            if let Err(error) = forgotten {
                tracing::debug!(%error, "the file stays in memory while it is loaded");
            }
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }

    /// The tensor's values.
    fn floats(&self, name: &str, info: &TensorInfo) -> Result<Vec<f32>, ModelError> {
        let bytes = self.tensor_bytes(name, info)?;
        let shape = info.shape.dims();
        let tensor = match dense_dtype(info.ggml_dtype) {
            Some(dtype) => dense(bytes, dtype, Some(DType::F32), shape, &Device::Cpu)?,
            None => {
                quantized(info.ggml_dtype, bytes, shape, &Device::Cpu)?.dequantize(&Device::Cpu)?
            }
        };
        Ok(tensor.flatten_all()?.to_vec1()?)
    }
}

#[expect(unsafe_code, reason = "memory-mapped weights")]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the bytes are only read. Should another process truncate the file while the model
    // loads, the process dies of it; model files are written once and renamed into place.
    unsafe { Mmap::map(file) }
}

/// The plain dtype of a tensor that is not quantised.
fn dense_dtype(dtype: GgmlDType) -> Option<DType> {
    match dtype {
        GgmlDType::F32 => Some(DType::F32),
        GgmlDType::F16 => Some(DType::F16),
        GgmlDType::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Reads metadata and tensor list. Candle's reader divides by the file's own alignment, so a broken
/// one makes it panic.
fn read_header(bytes: &[u8]) -> Result<Content, String> {
    match catch_unwind(|| Content::read(&mut Cursor::new(bytes))) {
        Ok(content) => content.map_err(|error| error.to_string()),
        Err(_) => Err("its header makes no sense".to_owned()),
    }
}

fn quantized(
    dtype: GgmlDType,
    bytes: &[u8],
    shape: &[usize],
    device: &Device,
) -> Result<QTensor, ModelError> {
    let elements = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let needed = elements.and_then(|n| (n / dtype.block_size()).checked_mul(dtype.type_size()));
    // Candle reads as many blocks as the shape says, wherever the bytes end.
    if needed != Some(bytes.len()) {
        return Err(ModelError::Load(format!(
            "a {dtype:?} tensor of shape {shape:?} does not take {} bytes",
            bytes.len()
        )));
    }
    Ok(ggml_file::qtensor_from_ggml(
        dtype,
        bytes,
        shape.to_vec(),
        device,
    )?)
}

/// Hands out a file's weights.
pub struct GgufWeights<'a> {
    file: &'a GgufFile,
    dtype: Option<DType>,
    device: Device,
    used: HashSet<String>,
}

impl<'a> GgufWeights<'a> {
    /// `dtype` applies to the tensors that are not quantised.
    pub fn new(file: &'a GgufFile, dtype: Option<DType>, device: &Device) -> Self {
        GgufWeights {
            file,
            dtype,
            device: device.clone(),
            used: HashSet::new(),
        }
    }

    fn info(&mut self, name: &str, expected: &[usize]) -> Result<&'a TensorInfo, ModelError> {
        let info = self
            .file
            .content
            .tensor_infos
            .get(name)
            .ok_or_else(|| missing(name))?;
        check_shape(name, info.shape.dims(), expected)?;
        self.used.insert(name.to_string());
        Ok(info)
    }
}

impl WeightSource for GgufWeights<'_> {
    fn naming(&self) -> Naming {
        Naming::Gguf
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn matrix(&mut self, place: &Place) -> Result<Weight, ModelError> {
        let name = place.weight();
        let info = self.info(&name, &[place.total_rows, place.columns])?;
        let whole = self.file.tensor_bytes(&name, info)?;
        let bytes = select_rows(place, whole);
        let shape = [place.rows, place.columns];
        let weight = match dense_dtype(info.ggml_dtype) {
            Some(dtype) => Weight::Dense(dense(&bytes, dtype, self.dtype, &shape, &self.device)?),
            None => Weight::Quantized(quantized(info.ggml_dtype, &bytes, &shape, &self.device)?),
        };
        self.file.forget_pages(whole);
        Ok(weight)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let info = self.info(name, &[len])?;
        self.file.floats(name, info)
    }

    fn finish(&self, config: &DecoderConfig) -> Result<(), ModelError> {
        let names = self.file.content.tensor_infos.keys();
        check_leftovers(
            config,
            names
                .map(String::as_str)
                .filter(|name| !self.used.contains(*name)),
        )
    }
}
