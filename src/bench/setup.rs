//! From what was asked for to a session with a server, and to the parts of a report that say so.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::capacity::presets::Preset;
use super::load::arrivals::Arrivals;
use super::load::asks::Load;
use super::load::{Lengths, Pattern, TextLoad};
use super::machine::Machine;
use super::options::LoadOptions;
use super::own_server::OwnServer;
use super::results::{self, Api, ClientSide, Metric, Objectives, ServerSide, SharedPrefix, Task};
use super::run::session::probe;
use super::run::{RunError, Session, SessionConfig};
use super::target::TargetConfig;

/// A server of ours has this long to load its model.
const MAX_LOADING: Duration = Duration::from_secs(300);

/// A session, and the server if it is ours.
pub struct Opened {
    /// The session.
    pub session: Session,
    /// What the load was made of.
    pub preset: Preset,
    own: Option<OwnServer>,
}

impl Opened {
    /// Finds the server, or starts one with these variables, and asks it about itself.
    ///
    /// # Errors
    /// There is none, or it does not answer as it should.
    pub fn open(options: &LoadOptions, serve_with: &[(String, String)]) -> Result<Self, RunError> {
        let preset = Preset::named(&options.preset).expect("the command line knows presets");
        let mut own = match options.url {
            None => Some(OwnServer::start(serve_with)?),
            Some(_) => None,
        };
        let url = match (&options.url, &own) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(own)) => own.url.clone(),
            (None, None) => unreachable!("there is one of both"),
        };
        let target = TargetConfig {
            url,
            key: read_key(options)?,
            model: options.target_model.clone().unwrap_or_default(),
            api: Api::OpenaiChat,
            draws: preset.task == Task::Image,
            ignore_eos: !options.respect_eos,
            extra_body: options.extra_body.clone(),
            timeout: options.timeout,
            planted_lag: options.planted_lag,
        };
        let told = probe(&target, MAX_LOADING, &mut || {
            own.as_mut().is_none_or(OwnServer::is_running)
        })?;
        let target = complete(target, options, &preset, &told)?;
        let session = Session::open(SessionConfig {
            load: load(options, &preset),
            salt: salt(options),
            objectives: objectives(options, &preset),
            timeout: options.timeout,
            max_open_requests: options.max_open_requests,
            server_process: own
                .as_ref()
                .map(OwnServer::process)
                .or(options.server_process),
            price_per_hour: options
                .price_per_hour
                .map(|price| (price, options.currency.clone())),
            target,
        })?;
        Ok(Opened {
            session,
            preset,
            own,
        })
    }

    /// Users with this preset's habits.
    pub fn users(&self, options: &LoadOptions, users: u32) -> Pattern {
        Pattern::Closed {
            users,
            think_seconds: self.think_seconds(options),
            turns: options.turns,
        }
    }

    /// Mean time to think.
    pub fn think_seconds(&self, options: &LoadOptions) -> f64 {
        options.think_seconds.unwrap_or(self.preset.think_seconds)
    }

    /// Over how long users come: as one request and one thought take, so that they end up in all phases of both.
    /// No longer than a minute.
    pub fn ramp(&self, pattern: &Pattern) -> Duration {
        match pattern {
            Pattern::Closed { think_seconds, .. } => {
                let cycle = self.session.idle().as_secs_f64() + think_seconds;
                Duration::from_secs_f64(cycle.clamp(0.5, 60.0))
            }
            _ => Duration::ZERO,
        }
    }

    /// The client's side of a report.
    pub fn client_side(
        &self,
        options: &LoadOptions,
        arrivals: results::Arrivals,
        settings: BTreeMap<String, Value>,
    ) -> ClientSide {
        ClientSide {
            girandole: env!("CARGO_PKG_VERSION").to_owned(),
            command: command(),
            machine: Machine::here(),
            seed: options.seed,
            load: self.described_load(options, arrivals),
            objectives: self.session.objectives().clone(),
            settings,
        }
    }

    /// The server's side of a report.
    pub fn server_side(&self, options: &LoadOptions) -> ServerSide {
        let told = self.session.told();
        let target = &self.session.config().target;
        let (software, version) = told.software();
        let notes = options.server_notes.iter();
        let mut settings: BTreeMap<String, Value> = notes
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect();
        if !told.props.is_null() {
            settings.insert("props".to_owned(), told.props.clone());
        }
        ServerSide {
            url: target.shown_url(),
            software,
            version,
            model: target.model.clone(),
            device: None,
            same_machine: target.is_local(),
            health: told.health.clone(),
            models: told.models.clone(),
            settings,
        }
    }

    /// What a reader should know before believing the figures.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.session.config().target.is_local() {
            warnings.push(
                "the client ran on the server's machine and shared its processor; its own use is in the device figures"
                    .to_owned(),
            );
        }
        if self.own.is_some() {
            warnings.push("the server was started for this measurement".to_owned());
        }
        if !self.session.config().target.planted_lag.is_zero() {
            warnings.push("the client was made slow on purpose (--planted-lag-ms)".to_owned());
        }
        warnings
    }

    fn described_load(&self, options: &LoadOptions, arrivals: results::Arrivals) -> results::Load {
        let config = self.session.config();
        let lengths = |lengths: &Lengths| described_lengths(lengths);
        match &config.load {
            Load::Text(load) => results::Load {
                description: format!(
                    "{}: {} tokens in, {} out",
                    self.preset.name, load.input_tokens, load.output_tokens
                ),
                task: Task::Text,
                api: config.target.api,
                arrivals,
                prompt_tokens: Some(lengths(&load.input_tokens)),
                output_tokens: Some(lengths(&load.output_tokens)),
                shared_prefix: (load.prefix_share > 0.0).then(|| SharedPrefix {
                    hit_rate: load.prefix_share,
                    prefixes: load.prefixes,
                    tokens: (f64::from(described_lengths(&load.input_tokens).mean as u32)
                        * load.prefix_share) as u32,
                }),
                unique_salt: load.prefix_share == 0.0,
                images: Vec::new(),
            },
            Load::Pictures(load) => results::Load {
                description: format!(
                    "{}: {}, {} steps, {} previews",
                    self.preset.name,
                    load.sizes
                        .as_ref()
                        .map_or("the model's size".to_owned(), ToString::to_string),
                    load.steps
                        .as_ref()
                        .map_or("the model's".to_owned(), ToString::to_string),
                    load.previews
                ),
                task: Task::Image,
                api: config.target.api,
                arrivals,
                prompt_tokens: None,
                output_tokens: None,
                shared_prefix: None,
                unique_salt: options.prefix_share == 0.0,
                images: load.kinds(),
            },
        }
    }
}

/// Model and interface, where nobody said.
fn complete(
    mut target: TargetConfig,
    options: &LoadOptions,
    preset: &Preset,
    told: &super::target::probe::Told,
) -> Result<TargetConfig, RunError> {
    target.api = options.api.unwrap_or(match (preset.task, told.is_ours()) {
        (Task::Text, _) => Api::OpenaiChat,
        // It tells steps and previews.
        (Task::Image, true) => Api::Native,
        (Task::Image, false) => Api::OpenaiImages,
    });
    let is_wrong = matches!(
        (preset.task, target.api),
        (Task::Image, Api::OpenaiChat | Api::OpenaiCompletions) | (Task::Text, Api::OpenaiImages)
    );
    if is_wrong {
        return Err(RunError::Server(format!(
            "--api does not fit --preset {}",
            preset.name
        )));
    }
    if target.model.is_empty() {
        let served = told.served();
        let fits = |task: &Option<Task>| task.is_none_or(|task| task == preset.task);
        let found = served
            .iter()
            .find(|(_, task)| fits(task))
            .map(|(name, _)| name.clone());
        target.model = found.ok_or_else(|| {
            RunError::Server(format!(
                "{} lists no model for --preset {} at /v1/models; name one with --target-model",
                target.shown_url(),
                preset.name
            ))
        })?;
    }
    Ok(target)
}

fn load(options: &LoadOptions, preset: &Preset) -> Load {
    match preset.task {
        Task::Text => Load::Text(TextLoad {
            input_tokens: options
                .input_tokens
                .clone()
                .unwrap_or_else(|| preset.input_tokens.clone()),
            output_tokens: options
                .output_tokens
                .clone()
                .unwrap_or_else(|| preset.output_tokens.clone()),
            conversations: options.conversations.clone(),
            prefix_share: options.prefix_share,
            prefixes: options.prefixes,
        }),
        Task::Image => {
            let mut pictures = preset.pictures.clone();
            pictures.sizes = options.sizes.clone().or(pictures.sizes);
            pictures.steps = options.steps.clone().or(pictures.steps);
            pictures.guidance_scale = options.guidance_scale.or(pictures.guidance_scale);
            Load::Pictures(pictures)
        }
    }
}

/// The preset's limits, with those that were given in their place. What is given as 0 is dropped.
fn objectives(options: &LoadOptions, preset: &Preset) -> Objectives {
    let given = |metric: Metric| options.limits.iter().any(|limit| limit.metric == metric);
    let kept = preset.limits.iter().filter(|limit| !given(limit.metric));
    let limits = kept
        .chain(&options.limits)
        .filter(|limit| limit.limit_ms > 0.0)
        .copied()
        .collect();
    Objectives {
        preset: Some(preset.name.to_owned()),
        limits,
        good_share: options.good_share.unwrap_or(preset.good_share),
    }
}

fn read_key(options: &LoadOptions) -> Result<Option<String>, RunError> {
    let Some(path) = &options.key_file else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        RunError::Server(format!("--target-key-file {}: {error}", path.display()))
    })?;
    Ok(text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .map(str::to_owned))
}

/// Different in every measurement, or no prompt would be new to the server the second time.
fn salt(options: &LoadOptions) -> String {
    options.salt.clone().unwrap_or_else(|| {
        let fresh = uuid::Uuid::now_v7().simple().to_string();
        // The last digits are random; the first are the time.
        fresh[fresh.len() - 8..].to_owned()
    })
}

/// The command line, without what may be a key or hold one.
fn command() -> Vec<String> {
    let mut hide_next = false;
    std::env::args()
        .map(|word| {
            let hidden = std::mem::replace(&mut hide_next, word == "--extra-body");
            match word
                .split_once("://")
                .and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?)))
            {
                _ if hidden || word.starts_with("--extra-body=") => "***".to_owned(),
                Some((scheme, (_, host))) => format!("{scheme}://***@{host}"),
                None => word,
            }
        })
        .collect()
}

/// The settings that both commands have, by their flags.
pub fn settings(options: &LoadOptions) -> BTreeMap<String, Value> {
    [
        ("warm-up", json!(options.warm_up.as_secs_f64())),
        ("timeout", json!(options.timeout.as_secs_f64())),
        ("max-open-requests", json!(options.max_open_requests)),
        ("respect-eos", json!(options.respect_eos)),
        ("turns", json!(options.turns)),
        (
            "conversations",
            json!(options.conversations.as_ref().map(|file| file.name.clone())),
        ),
        (
            "planted-lag-ms",
            json!(options.planted_lag.as_millis() as u64),
        ),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// How requests of an open loop come, for the report.
pub fn described_arrivals(arrivals: Arrivals) -> results::Arrivals {
    match arrivals {
        Arrivals::Constant => results::Arrivals::Constant,
        Arrivals::Poisson => results::Arrivals::Poisson,
        Arrivals::Gamma(burstiness) => results::Arrivals::Gamma { burstiness },
    }
}

/// A distribution's own figures, from draws of it: those of the cut-off kinds have no formula.
fn described_lengths(lengths: &Lengths) -> results::Lengths {
    let distribution = match lengths {
        Lengths::Fixed(_) => "fixed",
        Lengths::Uniform { .. } => "uniform",
        Lengths::Normal { .. } => "normal",
        Lengths::LogNormal { .. } => "log_normal",
        Lengths::File { .. } => "file",
    };
    let mut numbers = super::load::random(0, super::load::Purpose::Asks, 0);
    let draws: Vec<f64> = (0..10_000)
        .map(|_| f64::from(lengths.draw(&mut numbers)))
        .collect();
    let mean = draws.iter().sum::<f64>() / draws.len() as f64;
    let squares: f64 = draws.iter().map(|draw| (draw - mean).powi(2)).sum();
    let least = draws.iter().copied().fold(f64::INFINITY, f64::min);
    results::Lengths {
        distribution: distribution.to_owned(),
        mean,
        deviation: (squares / draws.len() as f64).sqrt(),
        min: lengths.min().unwrap_or(least as u32),
        max: lengths.max(),
    }
}
