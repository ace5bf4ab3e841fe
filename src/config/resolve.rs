//! From values as they were written to a [`Config`] that needs no further check.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::layers::{self, FileLayer, ModelTable, Origin, Values};
use super::settings::SETTINGS;
use super::{Config, ConfigError, LogConfig, LogFormat, ModelConfig};
use crate::api::gradio::GradioConfig;
use crate::api::{AddressHeader, EdgeConfig, Proxies};
use crate::engine::EngineConfig;
use crate::events::store::Retention;
use crate::intake::{ImageLimits, TextLimits};
use crate::job::Priority;
use crate::kernels::isa::Isa;
use crate::model::device::FloatType;
use crate::model::diffusion::DiffusionOptions;
use crate::model::manifest::{Catalogue, is_model_name};
use crate::model::sources::{
    HubSettings, LoadFormat, ModelRef, SourceSettings, WeightsVariant, default_cache_folder,
};
use crate::model::text::options::TextOptions;
use crate::scheduler::{Batching, Fairness, SchedulerConfig};

/// 64 megapixels: beyond what any model here draws, and 200 MB in memory.
const MAX_IMAGE_PIXELS: u64 = 64 << 20;
/// One hour and one day, as limits of what people may ask for.
const HOUR_MS: u64 = 3_600_000;
const DAY_S: u64 = 86_400;
/// The largest numbers that make sense on any machine; what a machine can really do shows later.
pub(super) const MAX_ROWS: u64 = 4_096;
const MAX_TOKENS: u64 = 1 << 28;
const MAX_COUNT: u64 = 1 << 24;
const MAX_BYTES: u64 = 1 << 40;

pub(super) fn resolve(
    flags: Values,
    variables: &[(String, String)],
) -> Result<Config, ConfigError> {
    let variable = |name: &str| {
        let found = variables.iter().find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.clone())
            .filter(|value| !value.is_empty())
    };
    let upper = layers::environment(variables.iter().cloned())?.overlaid(flags);
    let config_file = upper.path("config");
    let FileLayer { values, models } = match &config_file {
        Some(path) => layers::file(path)?,
        None => FileLayer::default(),
    };
    let values = layers::defaults().overlaid(values).overlaid(upper);

    let models_dir = models_folder(&values, config_file.as_deref());
    let catalogue = Catalogue::load(models_dir.as_deref())?;
    let sources = sources(&values, models_dir, variable)?;
    let models_by_default = models.is_empty()
        && values
            .get("model")
            .is_none_or(|value| value.origin == Origin::Default);
    let models = resolve_models(&values, &models, &catalogue)?;
    Ok(Config {
        models_by_default,
        listen: listen(&values)?,
        api_key_file: values.path("api_key_file"),
        admin_key_file: values.path("admin_key_file"),
        admin_history: values.seconds("admin_history_s", 10..=DAY_S)?,
        edge: edge(&values)?,
        retention: retention(&values)?,
        compute_threads: compute_threads(&values)?,
        isa: isa(&values)?,
        log: log(&values, variable)?,
        drain_timeout: values.millis("drain_timeout_ms", 0..=HOUR_MS)?,
        report: report(&values, &models, &sources),
        models,
        sources,
        catalogue,
    })
}

/// The folder of further manifests. One that was asked for must exist; the one beside the
/// configuration file may be absent.
fn models_folder(values: &Values, config_file: Option<&Path>) -> Option<PathBuf> {
    values.path("models_dir").or_else(|| {
        let beside = config_file?.parent()?.join("models");
        beside.is_dir().then_some(beside)
    })
}

fn sources(
    values: &Values,
    models_dir: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<SourceSettings, ConfigError> {
    let by_convention = || {
        let folder = |name: &str| variable(name).map(PathBuf::from);
        default_cache_folder(
            folder("XDG_CACHE_HOME").as_deref(),
            folder("HOME").as_deref(),
        )
    };
    Ok(SourceSettings {
        cache_folder: values
            .path("cache_dir")
            .or_else(by_convention)
            .ok_or(ConfigError::NoCacheFolder)?,
        models_folder: models_dir.unwrap_or_else(|| PathBuf::from("models")),
        offline: values.switch("offline")?,
        variant: values.choice(
            "weights_variant",
            &[
                ("full", WeightsVariant::Full),
                ("fp16", WeightsVariant::Half),
            ],
        )?,
        hub: HubSettings::from_environment(&variable),
    })
}

/// Listening where others can reach us takes keys, or the word that none are wanted.
fn listen(values: &Values) -> Result<SocketAddr, ConfigError> {
    let host: IpAddr = match values.text("host") {
        Some("localhost") => IpAddr::from([127, 0, 0, 1]),
        _ => values.parsed("host", "an IP address such as 127.0.0.1, 0.0.0.0 or ::1")?,
    };
    let guarded =
        values.path("api_key_file").is_some() || values.switch("allow_unauthenticated")?;
    if !host.is_loopback() && !guarded {
        return Err(ConfigError::Open { host });
    }
    Ok(SocketAddr::new(host, values.number("port", 0..=65_535)?))
}

fn edge(values: &Values) -> Result<EdgeConfig, ConfigError> {
    Ok(EdgeConfig {
        max_frames_per_second: values.number("max_frames_per_second", 1..=1_000)?,
        max_stream_requests: values.number("max_stream_requests", 1..=256)?,
        keep_alive: values.millis("keep_alive_ms", 100..=HOUR_MS)?,
        // Between the acceptance and the first look at the events nobody reads a native request.
        native_grace: values.millis("native_grace_ms", 1_000..=HOUR_MS)?,
        openai_grace: values.millis("openai_grace_ms", 0..=HOUR_MS)?,
        max_wait: values.seconds("max_wait_s", 0..=3_600)?,
        max_deadline: values.seconds("max_deadline_s", 1..=7 * DAY_S)?,
        max_connections: values.number("max_connections", 1..=MAX_COUNT)?,
        max_body_bytes: values.number("max_body_bytes", 1_024..=1 << 30)?,
        max_body_bytes_in_flight: values.number("max_body_bytes_in_flight", 1_024..=MAX_BYTES)?,
        max_concurrent_intake: values.number("max_concurrent_intake", 1..=1_024)?,
        max_concurrent_encodings: values.number("max_concurrent_encodings", 1..=1_024)?,
        max_header_bytes: values.number("max_header_bytes", 8_192..=1 << 20)?,
        max_headers: values.number("max_headers", 8..=1_024)?,
        header_read_timeout: values.millis("header_timeout_ms", 10..=HOUR_MS)?,
        body_read_timeout: values.millis("body_timeout_ms", 10..=HOUR_MS)?,
        max_stream_age: stream_age(values, "max_stream_age_s")?,
        openai_max_stream_age: stream_age(values, "openai_max_stream_age_s")?,
        proxies: proxies(values)?,
        max_priority: values.choice(
            "max_priority",
            &Priority::ALL.map(|class| (class.name(), class)),
        )?,
        cors_origins: cors_origins(values)?,
        public_url: public_url(values)?,
        gradio: gradio(values)?,
        drain_timeout: values.millis("drain_timeout_ms", 0..=HOUR_MS)?,
    })
}

fn stream_age(values: &Values, key: &str) -> Result<Option<Duration>, ConfigError> {
    let seconds = values.optional_number(key, 1..=DAY_S)?;
    Ok(seconds.map(Duration::from_secs))
}

fn proxies(values: &Values) -> Result<Proxies, ConfigError> {
    const KEY: &str = "trusted_proxies";
    let networks = values.list(KEY).iter().filter(|text| !text.is_empty());
    let trusted = networks
        .map(|text| {
            text.parse()
                .map_err(|error| values.refuse(KEY, text, error))
        })
        .collect::<Result<_, _>>()?;
    Ok(Proxies {
        trusted,
        header: values.choice("client_address_header", &AddressHeader::ALL)?,
    })
}

fn gradio(values: &Values) -> Result<GradioConfig, ConfigError> {
    Ok(GradioConfig {
        // Clients open their stream only when they know that they have joined.
        grace: values.millis("gradio_grace_ms", 1_000..=HOUR_MS)?,
        linger: values.millis("gradio_linger_ms", 0..=60_000)?,
        max_sessions: values.number("gradio_max_sessions", 1..=MAX_COUNT)?,
        max_session_events: values.number("gradio_max_session_events", 1..=MAX_COUNT)?,
        session_ttl: values.seconds("gradio_session_ttl_s", 1..=DAY_S)?,
        max_uploads: values.number("gradio_max_uploads", 0..=MAX_COUNT)?,
        max_upload_bytes: values.number("gradio_max_upload_bytes", 0..=MAX_BYTES)?,
        upload_ttl: values.seconds("gradio_upload_ttl_s", 1..=DAY_S)?,
    })
}

fn public_url(values: &Values) -> Result<Option<String>, ConfigError> {
    let Some(url) = values.text("public_url").filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() && !url.contains(['?', '#', ' ']) => {
            Ok(Some(url.trim_end_matches('/').to_owned()))
        }
        _ => {
            let must = "an address such as https://example.org/demo";
            Err(values.refuse("public_url", url, must))
        }
    }
}

fn cors_origins(values: &Values) -> Result<Vec<String>, ConfigError> {
    let origins = values.list("cors_origin");
    for origin in origins {
        let (scheme, rest) = origin.split_once("://").unwrap_or_default();
        let exact = ["http", "https"].contains(&scheme) && !rest.is_empty() && !rest.contains('/');
        if origin != "*" && !exact {
            let must = "* or an exact origin such as https://example.org";
            return Err(values.refuse("cors_origin", origin, must));
        }
    }
    Ok(origins.to_vec())
}

fn retention(values: &Values) -> Result<Retention, ConfigError> {
    Ok(Retention {
        max_age: values.seconds("event_retention_s", 0..=7 * DAY_S)?,
        max_bytes: values.number("event_store_max_bytes", 1 << 20..=MAX_BYTES)?,
        max_logs: values.number("event_store_max_requests", 1..=MAX_COUNT)?,
        max_expired_ids: values.number("event_store_max_expired", 0..=MAX_COUNT)?,
    })
}

/// One core is left to HTTP where there are several. Of two it would be half, and HTTP takes a few hundredths: there the
/// threads share.
fn compute_threads(values: &Values) -> Result<usize, ConfigError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let chosen = values.optional_number("compute_threads", 1..=1_024)?;
    Ok(chosen.unwrap_or(if cores > 2 { cores - 1 } else { cores }))
}

/// What the CPU's kernels may be made of. `None` for the best that the processor has.
fn isa(values: &Values) -> Result<Option<Isa>, ConfigError> {
    let name = values.text("isa").unwrap_or("auto");
    if name == "auto" {
        return Ok(None);
    }
    let available = Isa::available();
    match available.iter().find(|isa| isa.name() == name) {
        Some(isa) => Ok(Some(*isa)),
        None => {
            let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
            let must = format!("auto or what this processor has: {}", names.join(", "));
            Err(values.refuse("isa", name, must))
        }
    }
}

/// `RUST_LOG` is what Rust programs are used to: it stands in for a level that nobody set.
fn log(
    values: &Values,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<LogConfig, ConfigError> {
    let own = values.text("log_level").unwrap_or_default().to_owned();
    let is_default = values
        .get("log_level")
        .is_some_and(|value| value.origin == Origin::Default);
    let filter = variable("RUST_LOG").filter(|_| is_default).unwrap_or(own);
    if let Err(error) = filter.parse::<tracing_subscriber::EnvFilter>() {
        return Err(values.refuse("log_level", &filter, format!("a log filter: {error}")));
    }
    Ok(LogConfig {
        format: values.choice(
            "log_format",
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        )?,
        filter,
    })
}

/// `--model`, from wherever it comes, says what is served; the file's `[[models]]` tables say how,
/// and what when nobody else does.
fn resolve_models(
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
    let engine = engine(values)?;
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
        device: values.parsed("device", "cpu, cuda:N or metal:N")?,
        text: TextOptions {
            batch_size: engine.scheduler.batch_size,
            max_context: max_context(values, &model)?,
            kv_cache_tokens: values.optional_number("kv_cache_tokens", 32..=MAX_TOKENS)?,
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

fn engine(values: &Values) -> Result<EngineConfig, ConfigError> {
    Ok(EngineConfig {
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

/// What a configuration may allow.
const MAX_GUIDANCE_SCALE: f32 = 1_000.0;
const TEMPERATURE: &str = "a number from 0 to 100";

/// One line per section, and one each for the models and the hub. The origin is told of whatever is
/// not the default.
fn report(values: &Values, models: &[ModelConfig], sources: &SourceSettings) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut sections: Vec<&str> = SETTINGS.iter().map(|setting| setting.section).collect();
    sections.dedup();
    for section in sections {
        let shown: Vec<String> = SETTINGS
            .iter()
            .filter(|setting| setting.section == section)
            .filter_map(|setting| {
                let value = values.get(setting.key)?;
                let origin = match value.origin {
                    Origin::Default => "",
                    Origin::File => " (file)",
                    Origin::Environment => " (environment)",
                    Origin::Flag => " (flag)",
                };
                Some(format!("{}={}{origin}", setting.key, value.texts.join(",")))
            })
            .collect();
        lines.push(format!("{}: {}", section.to_lowercase(), shown.join(" ")));
    }
    for model in models {
        let scheduler = &model.engine.scheduler;
        lines.push(format!(
            "model {}: {} on {}, batches of {} rows, {:?}",
            model.name, model.model, model.device, scheduler.batch_size, scheduler.batching
        ));
    }
    let token = match sources.hub.token {
        Some(_) => "(hidden)",
        None => "none",
    };
    lines.push(format!(
        "hub: endpoint={} token={token} offline={} cache={}",
        without_password(&sources.hub.endpoint),
        sources.hub.offline,
        sources.hub.cache_folder.display()
    ));
    lines
}

/// `https://user:password@host` -> `https://(hidden)@host`.
fn without_password(endpoint: &str) -> String {
    let Some((scheme, rest)) = endpoint.split_once("://") else {
        return endpoint.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://(hidden)@{host}{path}"),
        None => endpoint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CommandLine;

    /// Resolves a command line, a TOML file and an environment.
    fn resolve(line: &str, file: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("girandole.toml");
        std::fs::write(&path, file).unwrap();
        let mut variables: Vec<(String, String)> = variables
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        variables.push(("HOME".into(), "/home/somebody".into()));
        variables.push(("GIRANDOLE_CONFIG".into(), path.to_str().unwrap().into()));
        let words = std::iter::once("girandole").chain(line.split_whitespace());
        CommandLine::parse(words.map(Into::into))
            .map_err(|error| error.to_string())?
            .resolve(&variables)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_valid_and_those_of_the_layers() {
        let config = resolve("", "", &[]).unwrap();
        assert_eq!(config.edge, EdgeConfig::default());
        assert_eq!(config.models[0].limits, TextLimits::default());
        let images = ImageLimits {
            // One setting for texts and pictures.
            max_prompt_bytes: config.models[0].limits.max_prompt_bytes,
            ..ImageLimits::default()
        };
        assert_eq!(config.models[0].image_limits, images);
        assert_eq!(
            config.models[0].text.batch_size,
            TextOptions::default().batch_size
        );
        assert_eq!(config.retention, Retention::default());
        assert_eq!(config.models[0].name, "smollm2-135m-instruct");
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(
            config.sources.cache_folder,
            Path::new("/home/somebody/.cache/girandole")
        );
    }

    #[test]
    fn the_nearer_layer_wins() {
        let batch_size = |line: &str, file: &str, variables: &[(&str, &str)]| {
            let config = resolve(line, file, variables).unwrap();
            config.models[0].engine.scheduler.batch_size
        };
        let variable = [("GIRANDOLE_BATCH_SIZE", "3")];
        assert_eq!(batch_size("", "", &[]), 16);
        assert_eq!(batch_size("", "batch_size = 2", &[]), 2);
        assert_eq!(batch_size("", "batch_size = 2", &variable), 3);
        assert_eq!(
            batch_size("serve --batch-size 4", "batch_size = 2", &variable),
            4
        );
        assert_eq!(batch_size("--batch-size=4", "", &variable), 4);
        let table = "batch_size = 2\n[[models]]\nmodel = 'smollm2-135m-instruct'\nbatch_size = 5";
        assert_eq!(batch_size("", table, &[]), 5);
        assert_eq!(batch_size("", table, &variable), 3);
        assert_eq!(batch_size("--model smollm2-135m-instruct", table, &[]), 5);
    }

    #[test]
    fn prefix_caching_is_bounded_and_switched_off_by_one_setting() {
        let tokens = |line: &str, file: &str| {
            let config = resolve(line, file, &[]).unwrap();
            config.models[0].text.prefix_cache_tokens
        };
        assert_eq!(tokens("", ""), None);
        assert_eq!(tokens("--prefix-cache-tokens 0", ""), Some(0));
        let table = "prefix_cache_tokens = 64\n[[models]]\nmodel = 'smollm2-135m-instruct'\n\
                     prefix_cache_tokens = 320";
        assert_eq!(tokens("", table), Some(320));
    }

    #[test]
    fn a_request_may_not_ask_for_more_rows_than_the_engine_holds() {
        let choices = |line: &str| {
            let config = resolve(line, "", &[]).unwrap();
            config.models[0].limits.max_choices
        };
        assert_eq!(choices(""), 32);
        assert_eq!(choices("--batch-size 2 --max-queued-requests 3"), 5);
        assert_eq!(choices("--max-choices 4"), 4);
    }

    #[test]
    fn wrong_values_are_refused_with_their_origin_and_limit() {
        for (line, file, variables, expected) in [
            (
                "--batch-size 0",
                "",
                vec![],
                "batch_size = \"0\" (from --batch-size) must be a whole number from 1 to 4096",
            ),
            (
                "",
                "batch_size = -1",
                vec![],
                "batch_size = \"-1\" (in the configuration file)",
            ),
            (
                "",
                "",
                vec![("GIRANDOLE_BATCH_SIZE", "many")],
                "batch_size = \"many\" (from GIRANDOLE_BATCH_SIZE)",
            ),
            (
                "--batching static",
                "",
                vec![],
                "one of continuous, dynamic",
            ),
            ("--port 65536", "", vec![], "from 0 to 65535"),
            (
                "--prefix-cache-tokens=-1",
                "",
                vec![],
                "prefix_cache_tokens = \"-1\" (from --prefix-cache-tokens) must be a whole number from 0",
            ),
            ("--native-grace-ms 0", "", vec![], "from 1000 to"),
            ("--max-concurrent-encodings 0", "", vec![], "from 1 to"),
            (
                "--max-steps 20 --default-steps 50",
                "",
                vec![],
                "from 1 to 20",
            ),
            (
                "--max-guidance-scale 5 --default-guidance-scale 7.5",
                "",
                vec![],
                "from 0 to 5",
            ),
            ("--max-guidance-scale NaN", "", vec![], "from 0 to 1000"),
            ("--host example.org", "", vec![], "an IP address"),
            ("--host 0.0.0.0", "", vec![], "api_key_file"),
            ("--host ::", "", vec![], "allow_unauthenticated"),
            ("--cors-origin example.org", "", vec![], "exact origin"),
            ("--public-url example.org", "", vec![], "an address such as"),
            ("--public-url https://", "", vec![], "an address such as"),
            ("--gradio-max-sessions 0", "", vec![], "from 1 to"),
            (
                "--cors-origin https://example.org/",
                "",
                vec![],
                "exact origin",
            ),
            (
                "--max-temperature NaN",
                "",
                vec![],
                "a number from 0 to 100",
            ),
            ("--log-level a=b=c", "", vec![], "a log filter"),
            ("--device gpu", "", vec![], "cpu, cuda:N or metal:N"),
            ("--dtype f64", "", vec![], "one of auto, f32, f16, bf16"),
            ("--allow-unauthenticated=maybe", "", vec![], "true or false"),
            (
                "--model nothing-like-it",
                "",
                vec![],
                "smollm2-135m-instruct",
            ),
            ("--max-context 9000", "", vec![], "from 1 to 8192"),
            (
                "--model smollm2-135m-instruct --model smollm2-135m-instruct",
                "",
                vec![],
                "two models are named smollm2-135m-instruct",
            ),
            ("", "", vec![("GIRANDOLE_PROT", "1")], "GIRANDOLE_PORT"),
            (
                "",
                "prot = 1",
                vec![],
                "unknown key prot (did you mean port?)",
            ),
            (
                "--models-dir /no/such/folder",
                "",
                vec![],
                "/no/such/folder",
            ),
        ] {
            let error = resolve(line, file, &variables).map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{line} {file}: {error}");
        }
    }

    #[test]
    fn beyond_this_machine_takes_keys_or_a_word() {
        for line in [
            "--host 0.0.0.0 --api-key-file keys",
            "--host 0.0.0.0 --allow-unauthenticated",
            "--host 127.0.0.2",
            "--host ::1",
            "--host localhost",
        ] {
            assert!(resolve(line, "", &[]).is_ok(), "{line}");
        }
    }

    #[test]
    fn several_models_have_names_of_their_own() {
        let names = |line: &str, file: &str, variables: &[(&str, &str)]| -> Vec<String> {
            let config = resolve(line, file, variables).unwrap();
            config.models.into_iter().map(|model| model.name).collect()
        };
        assert_eq!(
            names(
                "--model smollm2-135m-instruct --model b=scripted:x.toml",
                "",
                &[]
            ),
            ["smollm2-135m-instruct", "b"]
        );
        let list = [("GIRANDOLE_MODEL", "scripted:x.toml, scripted:y.toml")];
        assert_eq!(names("", "", &list), ["x", "y"]);
        let tables =
            "[[models]]\nmodel = 'scripted:x.toml'\n[[models]]\nmodel = 'z=scripted:x.toml'";
        assert_eq!(names("", tables, &[]), ["x", "z"]);
        assert_eq!(names("--model scripted:q.toml", tables, &[]), ["q"]);
        let both = format!("model = 'scripted:y.toml'\n{tables}");
        assert_eq!(names("", &both, &[]), ["y", "x", "z"]);
    }

    #[test]
    fn the_report_hides_secrets_and_names_origins() {
        let secrets = [
            ("HF_TOKEN", "hf_verysecret"),
            ("HF_ENDPOINT", "https://me:verysecret@mirror/x"),
        ];
        let config = resolve("--port 0", "batch_size = 2", &secrets).unwrap();
        let report = config.report.join("\n");
        for expected in [
            "port=0 (flag)",
            "batch_size=2 (file)",
            "batching=continuous ",
            "token=(hidden)",
            "https://(hidden)@mirror/x",
        ] {
            assert!(report.contains(expected), "{expected} is not in\n{report}");
        }
        assert!(!report.contains("verysecret"), "{report}");
        assert!(!format!("{config:?}").contains("hf_verysecret"));
    }
}
