//! From values as they were written to a [`Config`] that needs no further check.

mod edge;
mod models;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::layers::{self, FileLayer, Origin, Values};
use super::settings::SETTINGS;
use super::{Config, ConfigError, LogConfig, LogFormat, ModelConfig};
use crate::events::store::Retention;
use crate::kernels::isa::Isa;
use crate::model::manifest::Catalogue;
use crate::model::sources::{HubSettings, SourceSettings, WeightsVariant, default_cache_folder};

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
    let models = models::resolve_models(&values, &models, &catalogue)?;
    Ok(Config {
        models_by_default,
        listen: listen(&values)?,
        api_key_file: values.path("api_key_file"),
        admin_key_file: values.path("admin_key_file"),
        admin_history: values.seconds("admin_history_s", 10..=DAY_S)?,
        edge: edge::edge(&values)?,
        retention: retention(&values)?,
        compute_threads: compute_threads(&values)?,
        isa: isa(&values)?,
        log: log(&values, variable)?,
        drain_timeout: values.millis("drain_timeout_ms", 0..=HOUR_MS)?,
        stop_with_stdin: values.switch("stop_with_stdin")?,
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
            model.name,
            model.model,
            model.device_names().join(" and "),
            scheduler.batch_size,
            scheduler.batching
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
    use crate::api::EdgeConfig;
    use crate::config::CommandLine;
    use crate::intake::{ImageLimits, TextLimits};
    use crate::model::text::options::TextOptions;

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
    fn several_devices_serve_one_model() {
        let devices = |line: &str, file: &str, variables: &[(&str, &str)]| {
            let config = resolve(line, file, variables).unwrap();
            let names = config.models[0].device_names().join(" ");
            assert_eq!(
                config.models[0].engine.devices as usize,
                config.models[0].devices.len()
            );
            names
        };
        let cards = "devices = ['cuda:0', 'cuda:1']";
        assert_eq!(devices("", "", &[]), "cpu");
        assert_eq!(devices("--device cuda:1", "", &[]), "cuda:1");
        assert_eq!(devices("--devices cpu", "", &[]), "cpu");
        assert_eq!(devices("--devices cpu,cpu", "", &[]), "cpu:0 cpu:1");
        assert_eq!(
            devices("--devices cuda:1 --devices cpu", "", &[]),
            "cuda:1 cpu"
        );
        assert_eq!(devices("", cards, &[]), "cuda:0 cuda:1");
        let variable = [("GIRANDOLE_DEVICES", "metal:0, cpu, cpu")];
        assert_eq!(devices("", cards, &variable), "metal:0 cpu:0 cpu:1");
        // The nearer of the two counts, and an empty one is none.
        assert_eq!(devices("--device cpu", cards, &[]), "cpu");
        assert_eq!(devices("--devices=", cards, &[]), "cpu");
        let one = "device = 'cuda:3'";
        assert_eq!(devices("--devices cpu,cpu", one, &[]), "cpu:0 cpu:1");
        let table = "[[models]]\nmodel = 'smollm2-135m-instruct'\ndevices = ['cpu', 'cpu', 'cpu']";
        assert_eq!(devices("", table, &[]), "cpu:0 cpu:1 cpu:2");
        let table = format!("{one}\n{table}");
        assert_eq!(devices("", &table, &[]), "cpu:0 cpu:1 cpu:2");
        let table = format!("{cards}\n[[models]]\nmodel = 'smollm2-135m-instruct'\n{one}");
        assert_eq!(devices("", &table, &[]), "cuda:3");
        // Places are those of all devices together.
        let config = resolve(
            "--devices cpu,cpu,cpu --batch-size 4 --max-queued-requests 10",
            "",
            &[],
        );
        let engine = &config.unwrap().models[0].engine;
        assert_eq!((engine.max_running_rows(), engine.max_rows()), (12, 22));
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
            (
                "--devices cpu,gpu",
                "",
                vec![],
                "devices = \"cpu,gpu\" (from --devices) must be a list of cpu, cuda:N or metal:N",
            ),
            ("--devices cpu,", "", vec![], "must be a list of cpu"),
            (
                "",
                "devices = ['cuda:0', 'cpu', 'cuda:0']",
                vec![],
                "devices = \"cuda:0,cpu,cuda:0\" (in the configuration file) must be a list that names \
                 cuda:0 once",
            ),
            (
                "",
                "devices = ['cuda', 'cuda:0']",
                vec![],
                "names cuda:0 once",
            ),
            (
                "",
                "",
                vec![(
                    "GIRANDOLE_DEVICES",
                    "cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu",
                )],
                "(from GIRANDOLE_DEVICES) must be a list of at most 16 devices",
            ),
            (
                "--device cpu --devices cpu,cpu",
                "",
                vec![],
                "devices = \"cpu,cpu\" (from --devices) must be given without device",
            ),
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
