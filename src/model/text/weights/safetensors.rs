//! Weights of a model folder: `model.safetensors`, or the shards that
//! `model.safetensors.index.json` lists; memory-mapped.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

use super::{Weight, WeightSource, check_leftovers, check_shape, dense, missing, select_rows};
use crate::model::ModelError;
use crate::model::text::config::DecoderConfig;
use crate::model::text::names::{Naming, Place};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// The prefix that the text half of an image model's tensors carry, beside its newer order of words.
const TEXT_HALF_PREFIXES: [(&str, &str); 2] = [
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
];

/// Hands out a folder's weights.
pub struct SafetensorsWeights {
    files: MmapedSafetensors,
    /// Prefix in the files, and what the decoder calls it.
    prefix: Option<(&'static str, &'static str)>,
    names: Vec<String>,
    used: HashSet<String>,
    dtype: Option<DType>,
    device: Device,
}

impl SafetensorsWeights {
    /// Opens the folder's weights. They are converted to `dtype` if one is given.
    ///
    /// # Errors
    /// Names the file that is missing or broken.
    pub fn open(folder: &Path, dtype: Option<DType>, device: &Device) -> Result<Self, ModelError> {
        let paths = weight_files(folder)?;
        let files = map(&paths).map_err(|error| {
            ModelError::Load(format!(
                "cannot read the weights in {}: {error}",
                folder.display()
            ))
        })?;
        let names: Vec<String> = files.tensors().into_iter().map(|(name, _)| name).collect();
        let prefix = TEXT_HALF_PREFIXES
            .into_iter()
            .find(|(prefix, _)| names.iter().any(|name| name.starts_with(prefix)));
        Ok(SafetensorsWeights {
            files,
            prefix,
            names,
            used: HashSet::new(),
            dtype,
            device: device.clone(),
        })
    }

    /// The decoder's name for a tensor of the files.
    fn decoder_name(&self, name: &str) -> String {
        match self.prefix {
            Some((in_files, in_decoder)) if name.starts_with(in_files) => {
                name.replacen(in_files, in_decoder, 1)
            }
            _ => name.strip_prefix("language_model.").unwrap_or(name).into(),
        }
    }

    /// The files' name for a tensor of the decoder.
    fn file_name(&self, name: &str) -> String {
        let known = |candidate: &String| self.names.contains(candidate);
        let renamed = self
            .prefix
            .map(|(in_files, in_decoder)| name.replacen(in_decoder, in_files, 1))
            .filter(known);
        renamed
            .or_else(|| Some(format!("language_model.{name}")).filter(known))
            .unwrap_or_else(|| name.to_string())
    }

    fn view(&mut self, name: &str, expected: &[usize]) -> Result<TensorView<'_>, ModelError> {
        let file_name = self.file_name(name);
        let view = self.files.get(&file_name).map_err(|_| missing(name))?;
        check_shape(name, view.shape(), expected)?;
        self.used.insert(file_name);
        Ok(view)
    }
}

impl WeightSource for SafetensorsWeights {
    fn naming(&self) -> Naming {
        Naming::HuggingFace
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn matrix(&mut self, place: &Place) -> Result<Weight, ModelError> {
        let (wanted, device) = (self.dtype, self.device.clone());
        let name = place.weight();
        let view = self.view(&name, &[place.total_rows, place.columns])?;
        let dtype = dense_dtype(&name, view.dtype())?;
        let bytes = select_rows(place, view.data());
        let shape = [place.rows, place.columns];
        Ok(Weight::Dense(dense(
            &bytes, dtype, wanted, &shape, &device,
        )?))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let view = self.view(name, &[len])?;
        let dtype = dense_dtype(name, view.dtype())?;
        let tensor = dense(view.data(), dtype, Some(DType::F32), &[len], &Device::Cpu)?;
        Ok(tensor.to_vec1()?)
    }

    fn finish(&self, config: &DecoderConfig) -> Result<(), ModelError> {
        let unused: Vec<String> = self
            .names
            .iter()
            .filter(|name| !self.used.contains(*name))
            .map(|name| self.decoder_name(name))
            .collect();
        check_leftovers(config, unused.iter().map(String::as_str))
    }
}

/// # Errors
/// Names the tensor, if it is in a format that is not supported.
pub(crate) fn dense_dtype(name: &str, dtype: Dtype) -> Result<DType, ModelError> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => Err(ModelError::Load(format!(
            "tensor {name} is {other:?}; supported are F32, F16, BF16"
        ))),
    }
}

/// The files that hold the folder's weights.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = folder.join(SINGLE_FILE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join(INDEX_FILE);
    if !index.is_file() {
        return Err(ModelError::Load(format!(
            "{} holds neither {SINGLE_FILE} nor {INDEX_FILE}",
            folder.display()
        )));
    }
    shards(folder, &index)
}

/// The files that an index lists, all in `folder`.
///
/// # Errors
/// The index is broken, or a shard is missing.
pub(crate) fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let broken = |what: &str| ModelError::Load(format!("{}: {what}", index.display()));
    let text = std::fs::read_to_string(index).map_err(|error| broken(&error.to_string()))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| broken(&error.to_string()))?;
    let map = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| broken("there is no weight_map"))?;
    let mut shards = BTreeSet::new();
    for shard in map.values() {
        let shard = shard
            .as_str()
            // A shard is a file of the same folder, not a path that leads out of it.
            .filter(|name| {
                Path::new(name)
                    .file_name()
                    .is_some_and(|file| file == *name)
            })
            .ok_or_else(|| broken(&format!("{shard} is not a file name")))?;
        if !folder.join(shard).is_file() {
            return Err(broken(&format!("the shard {shard} is missing")));
        }
        shards.insert(folder.join(shard));
    }
    if shards.is_empty() {
        return Err(broken("the weight_map is empty"));
    }
    Ok(shards.into_iter().collect())
}

/// # Errors
/// A file cannot be read, or is no safetensors file.
#[expect(unsafe_code, reason = "memory-mapped weights")]
pub(crate) fn map(paths: &[PathBuf]) -> candle_core::Result<MmapedSafetensors> {
    // SAFETY: the bytes are only read. Should another process truncate a file while the model
    // loads, the process dies of it; model files are written once and renamed into place.
    unsafe { MmapedSafetensors::multi(paths) }
}
