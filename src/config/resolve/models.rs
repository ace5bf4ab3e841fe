//! Settings of each model: its engine, its limits, what it is.

use std::collections::BTreeSet;

use super::{DAY_S, HOUR_MS, MAX_COUNT, MAX_ROWS, MAX_TOKENS};
use crate::config::layers::{ModelTable, Origin, Values};
use crate::config::{ConfigError, ModelConfig};
use crate::engine::EngineConfig;
use crate::intake::{ImageLimits, TextLimits};
use crate::model::device::memory::MemoryShare;
use crate::model::device::{DeviceSpec, FloatType};
use crate::model::diffusion::DiffusionOptions;
use crate::model::manifest::{Catalogue, is_model_name};
use crate::model::sources::{LoadFormat, ModelRef};
use crate::model::text::options::TextOptions;
use crate::scheduler::{Batching, Fairness, SchedulerConfig};

/// 64 megapixels: beyond what any model here draws, and 200 MB in memory.
const MAX_IMAGE_PIXELS: u64 = 64 << 20;

pub(super) fn resolve_models(
    values: &Values,
    tables: &[ModelTable],
    catalogue: &Catalogue,
) -> Result<Vec<ModelConfig>, ConfigError> {
    let origin = values.get("model").map(|value| value.origin.clone());
    let from_file = origin.is_none_or(|origin| origin <= Origin::File);
    let listed = match values.get("model") {
        Some(value) if value.origin != Origin::Default || tables.is_empty() => &value.texts[..],
        _ => &[],
    };
    let mut chosen: Vec<&str> = listed.iter().map(String::as_str).collect();
    if from_file {
        let described = tables.iter().map(|table| table.model.as_str());
        chosen.extend(described.filter(|model| !listed.iter().any(|one| one == model)));
    }
    if chosen.is_empty() {
        return Err(values.refuse("model", "", "at least one model"));
    }
    let mut names = BTreeSet::new();
    let mut models = Vec::new();
    for text in chosen {
        let table = tables.iter().find(|table| table.model == text);
        let model = resolve_model(text, &values.for_model(table), catalogue)?;
        if !names.insert(model.name.clone()) {
            return Err(ConfigError::SameName { name: model.name });
        }
        models.push(model);
    }
    Ok(models)
}

fn resolve_model(
    text: &str,
    values: &Values,
    catalogue: &Catalogue,
) -> Result<ModelConfig, ConfigError> {
    let (name, reference) = split_name(text);
    let model = ModelRef::parse(reference, catalogue)
        .map_err(|error| values.refuse("model", text, format!("a model: {error}")))?;
    let devices = devices(values)?;
    let engine = engine(values, devices.len() as u32)?;
    let image_limits = image_limits(values, &engine)?;
    let load_format = match values.choice("load_format", &[("auto", false), ("dummy", true)])? {
        false => LoadFormat::Auto,
        true => LoadFormat::Dummy {
            seed: values.number("dummy_seed", 0..=u64::MAX)?,
        },
    };
    Ok(ModelConfig {
        name: name.map_or_else(|| model.default_name(), str::to_owned),
        load_format,
        devices,
        text: TextOptions {
            batch_size: engine.scheduler.batch_size,
            max_context: max_context(values, &model)?,
            kv_cache_tokens: values.optional_number("kv_cache_tokens", 32..=MAX_TOKENS)?,
            device_memory_share: values.parsed("device_memory_share", MemoryShare::WANTED)?,
            cuda_graphs: cuda_graphs(values)?,
            prefix_cache_tokens: values.optional_number("prefix_cache_tokens", 0..=MAX_TOKENS)?,
            kv_dtype: float_type(values, "kv_dtype")?,
            dtype: float_type(values, "dtype")?,
        },
        diffusion: DiffusionOptions {
            batch_size: engine.scheduler.batch_size,
            dtype: float_type(values, "dtype")?,
            decode_memory_bytes: values.number("decode_memory_bytes", 1 << 20..=1 << 40)?,
            max_image_pixels: values.number("max_image_pixels", 1..=MAX_IMAGE_PIXELS)?,
            prompt_cache_bytes: values.number("prompt_cache_bytes", 0..=1 << 40)?,
            max_rows_per_pass: match values.text("max_rows_per_pass") {
                Some("auto") => None,
                _ => Some(values.number("max_rows_per_pass", 1..=MAX_ROWS)?),
            },
            preview_decoder: values.path("preview_decoder"),
            cuda_graphs: cuda_graphs(values)?,
            deterministic: values.switch("deterministic")?,
        },
        default_steps: values
            .optional_number("default_steps", 1..=u64::from(image_limits.max_steps))?,
        default_guidance_scale: match values.text("default_guidance_scale") {
            None => None,
            Some(_) => Some(scale(
                values,
                "default_guidance_scale",
                image_limits.max_guidance_scale,
            )?),
        },
        limits: limits(values, &engine)?,
        image_limits,
        engine,
        default_max_tokens: values.optional_number("default_max_tokens", 1..=MAX_TOKENS)?,
        model,
    })
}

fn cuda_graphs(values: &Values) -> Result<bool, ConfigError> {
    values.choice("cuda_graphs", &[("on", true), ("off", false)])
}

fn float_type(values: &Values, key: &str) -> Result<Option<FloatType>, ConfigError> {
    match values.text(key) {
        Some("auto") => Ok(None),
        _ => values.parsed(key, "one of auto, f32, f16, bf16").map(Some),
    }
}

/// `NAME=MODEL`, where the model is to be called otherwise than by default.
fn split_name(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, model)) if is_model_name(name) => (Some(name), model),
        _ => (None, text),
    }
}

/// What is asked for, within what the manifest allows.
fn max_context(values: &Values, model: &ModelRef) -> Result<Option<u32>, ConfigError> {
    let made_for = match model {
        ModelRef::Known(manifest) => manifest.limits.max_context_tokens,
        _ => None,
    };
    let highest = made_for.map_or(MAX_TOKENS, u64::from);
    let asked = values.optional_number("max_context", 1..=highest)?;
    Ok(asked.or(made_for))
}

/// `devices`, or the one that `device` names: of the two, whichever was set nearer.
fn devices(values: &Values) -> Result<Vec<DeviceSpec>, ConfigError> {
    let origin = |key: &str| values.get(key).map(|value| value.origin.clone());
    let texts = values.list("devices");
    let listed = || texts.iter().flat_map(|text| text.split(',')).map(str::trim);
    let (of_one, of_several) = (origin("device"), origin("devices"));
    // An empty text unsets what a lower layer says.
    if listed().all(str::is_empty) || of_one > of_several {
        return Ok(vec![values.parsed("device", DEVICE)?]);
    }
    let written = texts.join(",");
    if of_one == of_several {
        let must = "given without device, which is set in the same place";
        return Err(values.refuse("devices", &written, must));
    }
    let mut devices = Vec::new();
    for text in listed() {
        let must = format!("a list of {DEVICE}");
        let device = text.parse();
        let device = device.map_err(|_| values.refuse("devices", &written, must))?;
        if device != DeviceSpec::Cpu && devices.contains(&device) {
            let must =
                format!("a list that names {device} once: an engine has its device for itself");
            return Err(values.refuse("devices", &written, must));
        }
        devices.push(device);
    }
    if devices.len() > MAX_DEVICES {
        let must = format!("a list of at most {MAX_DEVICES} devices");
        return Err(values.refuse("devices", &written, must));
    }
    Ok(devices)
}

fn engine(values: &Values, devices: u32) -> Result<EngineConfig, ConfigError> {
    Ok(EngineConfig {
        devices,
        scheduler: SchedulerConfig {
            batch_size: values.number("batch_size", 1..=MAX_ROWS)?,
            max_queue_delay: values.millis("max_queue_delay_ms", 0..=60_000)?,
            batching: values.choice(
                "batching",
                &[
                    ("continuous", Batching::Continuous),
                    ("dynamic", Batching::Dynamic),
                ],
            )?,
            step_budget: values.millis("step_budget_ms", 1..=HOUR_MS)?,
            fairness: Fairness {
                max_waiting_per_user: values
                    .optional_number("max_waiting_per_user", 0..=MAX_COUNT)?,
                max_running_per_user: values
                    .optional_number("max_running_per_user", 1..=MAX_ROWS)?,
                priority_ageing: values.seconds("priority_ageing_s", 0..=DAY_S)?,
                max_remembered_users: values.number("max_remembered_users", 0..=MAX_COUNT)?,
            },
        },
        max_queued_requests: values.number("max_queued_requests", 0..=MAX_COUNT)?,
        max_queued_tokens: values.number("max_queued_tokens", 1..=1 << 40)?,
        max_queued_source_bytes: values.number("max_queued_source_bytes", 1..=1 << 40)?,
    })
}

/// What one request may ask for: never more rows than the engine could ever hold.
fn limits(values: &Values, engine: &EngineConfig) -> Result<TextLimits, ConfigError> {
    let places = engine.max_rows_per_user();
    let max_temperature: f32 = values.parsed("max_temperature", TEMPERATURE)?;
    if !(0.0..=100.0).contains(&max_temperature) {
        let text = values.text("max_temperature").unwrap_or_default();
        return Err(values.refuse("max_temperature", text, TEMPERATURE));
    }
    Ok(TextLimits {
        max_choices: values
            .number::<u32>("max_choices", 1..=MAX_ROWS)?
            .min(places),
        max_prompts: values.number("max_prompts", 1..=MAX_ROWS)?,
        max_prompt_bytes: values.number("max_prompt_bytes", 1..=1 << 30)?,
        max_messages: values.number("max_messages", 1..=MAX_COUNT)?,
        max_stop_strings: values.number("max_stop_strings", 0..=1_024)?,
        max_stop_bytes: values.number("max_stop_bytes", 1..=1 << 20)?,
        max_stop_token_ids: values.number("max_stop_token_ids", 0..=MAX_COUNT)?,
        max_logit_bias: values.number("max_logit_bias", 0..=MAX_COUNT)?,
        max_top_logprobs: values.number("max_top_logprobs", 0..=1_024)?,
        max_new_tokens: values.optional_number("max_new_tokens", 1..=MAX_TOKENS)?,
        max_temperature,
    })
}

fn image_limits(values: &Values, engine: &EngineConfig) -> Result<ImageLimits, ConfigError> {
    Ok(ImageLimits {
        max_images: values
            .number::<u32>("max_images", 1..=MAX_ROWS)?
            .min(engine.max_rows_per_user()),
        max_image_pixels: values.number("max_image_pixels", 64 * 64..=MAX_IMAGE_PIXELS)?,
        max_steps: values.number("max_steps", 1..=1_000)?,
        max_previews: values.number("max_previews", 0..=1_000)?,
        max_prompt_bytes: values.number("max_prompt_bytes", 1..=1 << 30)?,
        max_prompt_chunks: values.number("max_prompt_chunks", 1..=64)?,
        max_source_pixels: values.number("max_source_pixels", 1..=MAX_IMAGE_PIXELS)?,
        max_guidance_scale: scale(values, "max_guidance_scale", MAX_GUIDANCE_SCALE)?,
    })
}

/// A guidance scale up to `most`.
fn scale(values: &Values, key: &'static str, most: f32) -> Result<f32, ConfigError> {
    let text = values.text(key).unwrap_or_default();
    let scale = text.parse::<f32>().ok();
    scale
        .filter(|scale| (0.0..=most).contains(scale))
        .ok_or_else(|| values.refuse(key, text, format!("a number from 0 to {most}")))
}

/// As many as one machine has, and each more than that is a thread and a whole model in vain.
const MAX_DEVICES: usize = 16;
const DEVICE: &str = "cpu, cuda:N or metal:N";
/// What a configuration may allow.
const MAX_GUIDANCE_SCALE: f32 = 1_000.0;
const TEMPERATURE: &str = "a number from 0 to 100";
