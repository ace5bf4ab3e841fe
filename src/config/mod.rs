//! Configuration: defaults < TOML file < environment < flags, then one validated [`Config`].
//!
//! [`settings`] lists every setting once, [`layers`] collects their values with their origins,
//! [`resolve`] judges them and builds the settings of each layer, [`command`] is the command line
//! ([`bench`] and [`load_bench`] its part for measurements).
//! Nothing here acts on a setting.

mod bench;
mod command;
mod layers;
mod load_bench;
mod resolve;
mod settings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::bench::BenchCommand;
pub use self::command::{Command, CommandLine, ModelsCommand};
pub use self::layers::Origin;
use crate::api::EdgeConfig;
use crate::engine::EngineConfig;
use crate::events::store::Retention;
use crate::intake::{ImageLimits, TextLimits};
use crate::kernels::isa::Isa;
use crate::model::device::DeviceSpec;
use crate::model::diffusion::DiffusionOptions;
use crate::model::manifest::{Catalogue, ManifestError};
use crate::model::sources::{LoadFormat, ModelRef, SourceSettings};
use crate::model::text::options::TextOptions;

/// Everything that the service was told, checked.
#[derive(Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The file of API keys.
    pub api_key_file: Option<PathBuf>,
    /// The file of keys for the operator's page.
    pub admin_key_file: Option<PathBuf>,
    /// How far back the operator's plots go.
    pub admin_history: Duration,
    /// The edge's settings.
    pub edge: EdgeConfig,
    /// How long events are kept.
    pub retention: Retention,
    /// What to serve; names are unique, and there is at least one.
    pub models: Vec<ModelConfig>,
    /// Nobody said what to serve.
    pub models_by_default: bool,
    /// Where models come from.
    pub sources: SourceSettings,
    /// Models known by name.
    pub catalogue: Catalogue,
    /// Threads for the models' arithmetic.
    pub compute_threads: usize,
    /// What the CPU's kernels are to be made of; `None` for the best that the processor has.
    pub isa: Option<Isa>,
    /// How log lines look, and which are written.
    pub log: LogConfig,
    /// How long running requests may go on after a signal.
    pub drain_timeout: Duration,
    /// Whether the service ends with its stdin.
    pub stop_with_stdin: bool,
    /// What was resolved, for people: one line per section, secrets hidden.
    pub report: Vec<String>,
}

/// One model to serve.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// What requests call it.
    pub name: String,
    /// Which it is.
    pub model: ModelRef,
    /// How its weights are had.
    pub load_format: LoadFormat,
    /// Where it runs, an engine on each. At least one.
    pub devices: Vec<DeviceSpec>,
    /// How a text model is set up.
    pub text: TextOptions,
    /// How an image model is set up.
    pub diffusion: DiffusionOptions,
    /// Its engine's settings.
    pub engine: EngineConfig,
    /// How far a request for text may go.
    pub limits: TextLimits,
    /// How far a request for pictures may go.
    pub image_limits: ImageLimits,
    /// New tokens of a request that does not say, if the configuration does.
    pub default_max_tokens: Option<u32>,
    /// Denoising steps of a request that does not say, if the configuration does.
    pub default_steps: Option<u32>,
    /// Guidance of a request that does not say, if the configuration does.
    pub default_guidance_scale: Option<f32>,
}

impl ModelConfig {
    /// The device, or the first of several.
    pub fn device(&self) -> DeviceSpec {
        self.devices.first().copied().unwrap_or_default()
    }

    /// What each device is called among them: as it was written, and several processors by number.
    pub fn device_names(&self) -> Vec<Arc<str>> {
        let several = self.processors() > 1;
        let mut number = 0;
        let mut name = |device: &DeviceSpec| -> Arc<str> {
            match device {
                DeviceSpec::Cpu if several => {
                    number += 1;
                    format!("cpu:{}", number - 1).into()
                }
                device => device.to_string().into(),
            }
        };
        self.devices.iter().map(&mut name).collect()
    }

    /// How many of its devices are the processor.
    pub fn processors(&self) -> usize {
        let devices = self.devices.iter();
        devices.filter(|device| **device == DeviceSpec::Cpu).count()
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// Which are written, as `tracing-subscriber` reads it.
    pub filter: String,
}

/// The configuration cannot be used. Every message names the setting and who set it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value beyond its limits.
    #[error("{key} = {value:?} ({place}) must be {must}")]
    Value {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// Who set it.
        place: String,
        /// What it must be.
        must: String,
    },
    /// The file cannot be read.
    #[error("configuration file {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, or has a key that nobody knows.
    #[error("configuration file {path}: {problem}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// An environment variable that looks like ours and is not.
    #[error("unknown environment variable {name}{suggestion}")]
    UnknownVariable {
        /// Its name.
        name: String,
        /// What may have been meant.
        suggestion: String,
    },
    /// Two models would have the same name.
    #[error("two models are named {name}; write NAME=MODEL to name one differently")]
    SameName {
        /// The name.
        name: String,
    },
    /// Nobody asks for keys, and others can reach us.
    #[error(
        "host = {host} can be reached from other machines, and no keys are asked for: give \
         api_key_file, or allow_unauthenticated if that is meant"
    )]
    Open {
        /// The address.
        host: std::net::IpAddr,
    },
    /// There is nowhere to keep models.
    #[error("no cache folder: set cache_dir, XDG_CACHE_HOME or HOME")]
    NoCacheFolder,
    /// A model manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}
