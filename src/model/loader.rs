//! From files to a model: first the small things that requests need (tokenizer, limits, defaults),
//! then, on the engine's thread, the weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;
use candle_core::quantized::gguf_file;
use serde_json::Value;

use super::device::{self, DeviceSpec, FloatType};
use super::manifest::ModelFiles;
use super::text::TextModel;
use super::text::config::{self, DecoderConfig};
use super::text::decoder::{Decoder, KvShape};
use super::text::options::TextOptions;
use super::text::tokenizer::TextTokenizer;
use super::text::weights::dummy::DummyWeights;
use super::text::weights::gguf::{GgufFile, GgufWeights};
use super::text::weights::safetensors::SafetensorsWeights;
use super::{Model, ModelError};

/// What a request needs to know of a text model. Cheap to load beside the weights.
pub struct TextAssets {
    /// Text to tokens and back.
    pub tokenizer: Arc<TextTokenizer>,
    /// The decoder's shape.
    pub config: DecoderConfig,
    /// What the model's makers advise for sampling.
    pub defaults: GenerationDefaults,
    weights: Weights,
}

/// Where the weights are.
enum Weights {
    Gguf(GgufFile),
    Folder(PathBuf),
    Dummy { seed: u64, dtype: FloatType },
}

/// What a model's makers advise for sampling, where they do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// See [`crate::job::Sampling::temperature`].
    pub temperature: Option<f32>,
    /// See [`crate::job::Sampling::top_p`].
    pub top_p: Option<f32>,
    /// See [`crate::job::Sampling::top_k`].
    pub top_k: Option<u32>,
    /// See [`crate::job::Sampling::min_p`].
    pub min_p: Option<f32>,
    /// See [`crate::job::Sampling::typical_p`].
    pub typical_p: Option<f32>,
    /// See [`crate::job::Sampling::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
}

impl GenerationDefaults {
    /// Without what no request could ask for: files say many things.
    fn usable(mut self) -> Self {
        let share = |value: &mut Option<f32>| {
            *value = value.filter(|value| (0.0..=1.0).contains(value));
        };
        share(&mut self.top_p);
        share(&mut self.min_p);
        self.typical_p = self.typical_p.filter(|p| *p > 0.0 && *p <= 1.0);
        self.temperature = self.temperature.filter(|t| t.is_finite() && *t >= 0.0);
        let is_penalty = |penalty: &f32| penalty.is_finite() && *penalty > 0.0;
        self.repetition_penalty = self.repetition_penalty.filter(is_penalty);
        self
    }
}

impl TextAssets {
    /// Positions that a row may reach with these options: the limit for prompt plus new tokens.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub fn served_context(
        &self,
        options: &TextOptions,
        device: DeviceSpec,
    ) -> Result<u32, ModelError> {
        let shape = options.kv_shape(&self.config, device)?;
        Ok(u32::try_from(shape.served_context).unwrap_or(u32::MAX))
    }
}

/// Reads what requests need to know of a model.
///
/// # Errors
/// Names the file and what is missing or wrong in it.
pub fn load_assets(files: &ModelFiles) -> Result<TextAssets, ModelError> {
    match files {
        ModelFiles::Gguf(path) => gguf_assets(path),
        ModelFiles::Folder(folder) => folder_assets(folder),
        ModelFiles::Dummy { config, seed } => dummy_assets(config, *seed),
        ModelFiles::Checkpoint { file, .. } => Err(ModelError::Load(format!(
            "{} is a checkpoint of an image model",
            file.display()
        ))),
        ModelFiles::Scripted(path) => Err(ModelError::Load(format!(
            "{} is a script, not a text model",
            path.display()
        ))),
    }
}

/// Builds the model on the device. To be called on the thread that will own it.
///
/// # Errors
/// The device is not there, a setting cannot be used, or the weights are not what the configuration
/// says; with the name of what is wrong.
pub fn build(
    assets: &TextAssets,
    device: DeviceSpec,
    options: &TextOptions,
) -> Result<Box<dyn Model>, ModelError> {
    Ok(Box::new(build_text(assets, device, options)?))
}

/// As [`build`], for those who want to know more of the model than the engine does.
///
/// # Errors
/// As [`build`].
pub fn build_text(
    assets: &TextAssets,
    spec: DeviceSpec,
    options: &TextOptions,
) -> Result<TextModel, ModelError> {
    let kv = options.kv_shape(&assets.config, spec)?;
    let device = spec.open()?;
    let dtype = options.dtype.map(DType::from);
    let config = &assets.config;
    let decoder = match &assets.weights {
        Weights::Gguf(file) => {
            Decoder::load(config, &mut GgufWeights::new(file, dtype, &device), &kv)?
        }
        Weights::Folder(folder) => {
            let mut source = SafetensorsWeights::open(folder, dtype, &device)?;
            Decoder::load(config, &mut source, &kv)?
        }
        Weights::Dummy {
            seed,
            dtype: of_config,
        } => {
            let dtype = dtype.unwrap_or((*of_config).into());
            let mut source = DummyWeights::new(config, *seed, dtype, &device);
            Decoder::load(config, &mut source, &kv)?
        }
    };
    let kv = KvShape {
        blocks: decoder.kv_blocks(),
        ..kv
    };
    options.check_prefix_cache(&kv)?;
    device::loaded(&device);
    let model = TextModel::new(
        decoder,
        Arc::clone(&assets.tokenizer),
        options.batch_size,
        &kv,
        options.prefix_cache_blocks(&kv),
    );
    match device.is_cuda() {
        true => model.with_steps_ahead(options.cuda_graphs),
        false => Ok(model),
    }
}

fn gguf_assets(path: &Path) -> Result<TextAssets, ModelError> {
    let mut file = GgufFile::open(path)?;
    let factors = file.rope_factors()?;
    let config = config::gguf::parse(file.content(), &factors).map_err(in_file(path))?;
    let tokenizer = TextTokenizer::from_gguf(file.content()).map_err(in_file(path))?;
    let defaults = gguf_defaults(file.content());
    file.forget_metadata();
    Ok(assets(tokenizer, config, defaults, Weights::Gguf(file)))
}

fn folder_assets(folder: &Path) -> Result<TextAssets, ModelError> {
    let config_path = folder.join("config.json");
    let config =
        config::hugging_face::parse(&read_json(&config_path)?).map_err(in_file(&config_path))?;
    if !folder.join("tokenizer.json").is_file() {
        return Err(ModelError::Load(format!(
            "{} holds no tokenizer.json, without which its model cannot be served",
            folder.display()
        )));
    }
    let tokenizer = TextTokenizer::from_folder(folder).map_err(in_file(folder))?;
    let defaults = folder_defaults(folder)?;
    let weights = Weights::Folder(folder.to_path_buf());
    Ok(assets(tokenizer, config, defaults, weights))
}

fn dummy_assets(config_path: &Path, seed: u64) -> Result<TextAssets, ModelError> {
    let json = read_json(config_path)?;
    let config = config::hugging_face::parse(&json).map_err(in_file(config_path))?;
    let folder = config_path.parent().unwrap_or(Path::new("."));
    let tokenizer = if folder.join("tokenizer.json").is_file() {
        TextTokenizer::from_folder(folder).map_err(in_file(folder))?
    } else {
        TextTokenizer::bytes(config.vocab_size as u32)
    };
    let dtype = ["dtype", "torch_dtype"]
        .iter()
        .find_map(|name| json.get(name)?.as_str()?.parse().ok())
        .unwrap_or(FloatType::F32);
    let weights = Weights::Dummy { seed, dtype };
    let defaults = GenerationDefaults::default();
    Ok(assets(tokenizer, config, defaults, weights))
}

/// The tokenizer may know fewer tokens than the decoder has rows (padding), and even more (Gemma 3's
/// knows one for images): the model refuses a prompt with a token that it does not have.
fn assets(
    tokenizer: TextTokenizer,
    config: DecoderConfig,
    defaults: GenerationDefaults,
    weights: Weights,
) -> TextAssets {
    TextAssets {
        tokenizer: Arc::new(tokenizer),
        config,
        defaults,
        weights,
    }
}

/// Puts the file's name before what is wrong with it.
fn in_file<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> ModelError {
    move |error| ModelError::Load(format!("{}: {error}", path.display()))
}

fn read_json(path: &Path) -> Result<Value, ModelError> {
    let text = std::fs::read_to_string(path).map_err(in_file(path))?;
    serde_json::from_str(&text).map_err(in_file(path))
}

/// `generation_config.json`, where there is one. A model whose makers do not sample has no advice on it.
fn folder_defaults(folder: &Path) -> Result<GenerationDefaults, ModelError> {
    let path = folder.join("generation_config.json");
    if !path.is_file() {
        return Ok(GenerationDefaults::default());
    }
    let json = read_json(&path)?;
    if json.get("do_sample").and_then(Value::as_bool) == Some(false) {
        return Ok(GenerationDefaults::default());
    }
    let number = |name: &str| json.get(name).and_then(Value::as_f64).map(|n| n as f32);
    Ok(GenerationDefaults {
        temperature: number("temperature"),
        top_p: number("top_p"),
        top_k: json
            .get("top_k")
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok()),
        min_p: number("min_p"),
        typical_p: number("typical_p"),
        repetition_penalty: number("repetition_penalty"),
    }
    .usable())
}

/// What a GGUF file says under `general.sampling`.
fn gguf_defaults(content: &gguf_file::Content) -> GenerationDefaults {
    let value = |name: &str| content.metadata.get(&format!("general.sampling.{name}"));
    let number = |name: &str| match value(name) {
        Some(gguf_file::Value::F32(number)) => Some(*number),
        _ => None,
    };
    GenerationDefaults {
        temperature: number("temp"),
        top_p: number("top_p"),
        top_k: match value("top_k") {
            Some(gguf_file::Value::I32(k)) => u32::try_from(*k).ok(),
            Some(gguf_file::Value::U32(k)) => Some(*k),
            _ => None,
        },
        min_p: number("min_p"),
        typical_p: None,
        repetition_penalty: number("penalty_repeat"),
    }
    .usable()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_that_make_no_sense_are_left_out() {
        let good = GenerationDefaults {
            temperature: Some(0.7),
            top_p: Some(1.0),
            top_k: Some(40),
            min_p: Some(0.0),
            typical_p: Some(0.9),
            repetition_penalty: Some(1.1),
        };
        assert_eq!(good.usable(), good);
        let bad = GenerationDefaults {
            temperature: Some(f32::NAN),
            top_p: Some(-1.0),
            top_k: None,
            min_p: Some(1.5),
            typical_p: Some(0.0),
            repetition_penalty: Some(0.0),
        };
        assert_eq!(bad.usable(), GenerationDefaults::default());
    }
}
